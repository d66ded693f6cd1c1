"""COCO annotation files: the official JSON beside a folder of images."""
import os
import pathlib
from typing import Any, SupportsIndex

import msgspec
import numpy as np
from absl import logging
from jaxtyping import Bool, Integer, UInt8
from ml_collections import ConfigDict

from htd_jax.data import images
from htd_jax.data.records import Category, Record
from htd_jax.errors import UserError

SMALLEST_SIDE = 32  # pixels; training leaves smaller images out


class _Category(msgspec.Struct):
    id: int
    name: str


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    id: int | None = None
    area: float | None = None
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0


class File(msgspec.Struct):
    """What is read of the JSON. All the rest, above all segmentations, is skipped without building objects."""

    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation] | None = None


class CocoDataset:
    """Images and boxes of one annotation file; see `records.Dataset`.

    Training leaves out images with min(w, h) < 32 or without any annotation (crowds count as one); an image whose
    boxes all fall away stays, with none. Validation keeps every image. Both keep the order of the file.
    """

    def __init__(self, annotations: str | os.PathLike, folder: str | os.PathLike, training: bool = False):
        """Reads and checks everything but the pixels.

        Args:
          annotations: the JSON file. Validation does without its list `annotations` (test-dev has none).
          folder: what its `file_name`s are relative to.
          training: whether to filter images.
        Raises UserError: a file, key, category or value is missing or impossible, or no usable image is left.
        """
        self._annotations, self._folder = pathlib.Path(annotations), pathlib.Path(folder)
        file = decode_json(self._annotations, File)
        if training and file.annotations is None:
            raise UserError(f"annotation file {annotations} has no 'annotations': nothing can be learned from it")
        self._check(file)
        self.categories = tuple(Category(c.id, c.name) for c in file.categories)
        sizes = np.array([(i.height, i.width) for i in file.images], np.int32).reshape(-1, 2)
        rows, boxes, labels, crowd, valid = self._arrays(file, sizes)
        annotated = np.bincount(rows[rows >= 0], minlength=len(sizes)) > 0
        kept = usable(annotated, sizes) if training else np.arange(len(sizes))
        if not len(kept):
            why = f": none of its {len(sizes)} has an annotation and sides of at least {SMALLEST_SIDE} pixels"
            raise UserError(f"annotation file {annotations} has no usable image{why * training}")
        self._ids, self._names = [file.images[i].id for i in kept], [file.images[i].file_name for i in kept]
        self._sizes = sizes[kept]
        chosen, self._starts = _group(rows, valid, kept, len(sizes))
        self._boxes, self._labels, self._crowd = boxes[chosen], labels[chosen], crowd[chosen]
        self._check_files()
        logging.info("%s: using %d of %d images and %d of %d boxes",
                     annotations, len(kept), len(sizes), len(chosen), len(rows))

    @classmethod
    def from_config(cls, config: ConfigDict, split: str) -> "CocoDataset":
        """`config.data.train` or `config.data.val`: annotations and images."""
        source = config.data[split]
        return cls(source.annotations, source.images, training=split == "train")

    def __len__(self) -> int:
        return len(self._ids)

    def record(self, index: SupportsIndex) -> Record:
        height, width = self._sizes[index].tolist()
        own = slice(self._starts[index], self._starts[index + 1])
        return Record(self._ids[index], self._names[index], height, width,
                      self._boxes[own], self._labels[own], self._crowd[own])

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        """RGB in the orientation and size of the annotation."""
        return images.read(self._folder / self._names[index], tuple(self._sizes[index].tolist()))

    def ground_truth(self) -> dict:
        """The file as it is, for pycocotools; read again, since training need not keep it in memory."""
        return decode_json(self._annotations, dict)

    def _arrays(self, file, sizes):
        """Of all annotations: image rows, boxes (float32 x1 y1 x2 y2), labels, crowd, and which of them are kept."""
        annotations = file.annotations or []
        row_of = {image.id: row for row, image in enumerate(file.images)}
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        rows = np.array([row_of.get(a.image_id, -1) for a in annotations], np.int64)
        labels = np.array([label_of[a.category_id] for a in annotations], np.int32)
        box = np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4)
        area = np.array([a.bbox[2] * a.bbox[3] if a.area is None else a.area for a in annotations], np.float64)
        crowd, ignore = (np.array([bool(getattr(a, k)) for a in annotations], bool) for k in ("iscrowd", "ignore"))
        x, y, w, h = box.T
        height, width = sizes[rows].T if len(sizes) else np.zeros((2, len(rows)))
        inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
        valid = (rows >= 0) & ~ignore & inside & (area > 0) & (w >= 1) & (h >= 1)
        return rows, np.stack([x, y, x + w, y + h], 1).astype(np.float32), labels, crowd, valid

    def _check(self, file):
        """What the types alone do not say."""
        where, ids = f"annotation file {self._annotations}", {c.id for c in file.categories}
        listed = {image.id for image in file.images}
        if not ids:
            raise UserError(f"{where} has no categories")
        for name, entries, distinct in (("categories", file.categories, ids), ("images", file.images, listed)):
            if len(distinct) < len(entries):
                raise UserError(f"{where} has two {name} of one id")
        for image in file.images:
            if image.height < 1 or image.width < 1:
                size = f"{image.width} x {image.height} pixels (width x height)"
                raise UserError(f"{where}: image {image.file_name} is {size}")
        for a in file.annotations or []:
            if a.category_id not in ids:
                raise UserError(f"{where}: annotation {a.id} of image {a.image_id} has category id {a.category_id}, "
                                "which is not in its list of categories")
        if strays := sum(a.image_id not in listed for a in file.annotations or []):
            logging.warning("%s: %d annotations are of images that it does not list; they are not used", where, strays)

    def _check_files(self):
        """Finds missing images before any device work, by one listing per folder."""
        if not self._folder.is_dir():
            raise UserError(f"image folder {self._folder} (for {self._annotations}) does not exist")
        listings, missing = {}, []
        for name in self._names:
            folder, base = os.path.split(os.path.join(self._folder, name))
            if folder not in listings:
                listings[folder] = {entry.name for entry in os.scandir(folder)} if os.path.isdir(folder) else set()
            if base not in listings[folder]:
                missing.append(name)
        if missing:
            raise UserError(f"image file {missing[0]} of {self._annotations} is not in {self._folder}"
                            + f", nor are {len(missing) - 1} others of {len(self._names)}" * (len(missing) > 1))


def decode_json(path: str | os.PathLike, schema: type) -> Any:
    """Reads JSON as `schema` (dict or a msgspec type); UserError names the file and the place in it."""
    data = images.read_bytes(path, "annotation")
    if not data.strip():
        raise UserError(f"annotation file {path} is empty")
    try:
        return msgspec.json.decode(data, type=schema, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"annotation file {path} is not a COCO detection file: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"annotation file {path} is not JSON: {error}") from None


def usable(annotated: Bool[np.ndarray, " images"], sizes: Integer[np.ndarray, "images 2"]) -> np.ndarray:
    """Rows of the images that can be trained on: annotated, and not too small."""
    return np.flatnonzero(annotated & (sizes.min(1, initial=2**31 - 1) >= SMALLEST_SIDE))


def _group(rows, valid, kept, count):
    """Annotations that are `valid` and of the images `kept`, image by image in the order of the file.

    Returns: their indices, and where each image's begin among them (one more than images).
    """
    new_row = np.full(count + 1, -1)  # the last entry serves row -1, an image that the file does not list
    new_row[kept] = np.arange(len(kept))
    chosen = np.flatnonzero(valid & (new_row[rows] >= 0))
    chosen = chosen[np.argsort(new_row[rows[chosen]], kind="stable")]
    return chosen, np.searchsorted(new_row[rows[chosen]], np.arange(len(kept) + 1))
