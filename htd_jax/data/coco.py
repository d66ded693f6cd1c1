"""COCO annotation files: the official JSON beside a folder of images."""
import logging
import os
import pathlib
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from ml_collections import ConfigDict

from htd_jax.data import checks, coco_json, file_names, images
from htd_jax.data.records import Category, Record
from htd_jax.errors import UserError

SMALLEST_SIDE = 32  # pixels; training leaves smaller images out
FARTHEST = 2.0**31  # pixels; boxes that reach farther, to 1e308, would be infinite in float32
UNSET = "data/coco/"  # how the default paths of data.train and data.val begin
log = logging.getLogger(__name__)


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
        self._annotations, self._folder = (pathlib.Path(os.path.expanduser(path)) for path in (annotations, folder))
        self._where = f"annotation file {annotations}"
        file = coco_json.read(self._annotations)
        if training and file.annotations is None:
            raise UserError(f"{self._where} has no 'annotations': nothing can be learned from it")
        self._file = None if training else file
        self.categories = tuple(Category(c.id, c.name) for c in file.categories)
        sizes = np.array([(i.height, i.width) for i in file.images], np.int32).reshape(-1, 2)
        rows, boxes, labels, crowd, faults = self._arrays(file, sizes)
        annotated = np.bincount(rows[rows >= 0], minlength=len(sizes)) > 0
        kept = usable(annotated, sizes) if training else np.arange(len(sizes))
        if not len(kept):
            why = f": none of its {len(sizes)} has an annotation and sides of at least {SMALLEST_SIDE} pixels"
            raise UserError(f"{self._where} has no usable image{why * training}")
        chosen, self._starts = _group(rows, ~np.any(list(faults.values()), 0), kept, len(sizes))
        checks.check_boxes(self._where, boxes[rows >= 0], sizes[rows[rows >= 0]])
        if training:
            checks.check_used(self._where, chosen, crowd, faults, boxes)
        self._ids, names = [file.images[i].id for i in kept], [file.images[i].file_name for i in kept]
        self._sizes, self._labels, self._crowd = sizes[kept], labels[chosen], crowd[chosen]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        self._boxes = corners[chosen].astype(np.float32)
        self._names = file_names.locate(names, self._folder, self._annotations)
        if not training:  # training may skip an image, a score counts every one
            self.check_files()

    @classmethod
    def from_config(cls, config: ConfigDict, split: str) -> "CocoDataset":
        """`config.data.train` or `config.data.val`: annotations and images."""
        source = config.data[split]
        if not source.annotations:
            raise UserError(f"config.data.{split}.annotations is empty: give the path of a COCO JSON")
        if source.annotations.startswith(UNSET) and not pathlib.Path(source.annotations).exists():
            raise UserError(f"annotation file {source.annotations} does not exist; set config.data.root to the folder "
                            "of your own data, or put COCO there")
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
        """What the file said when it was opened, for pycocotools; a training set, kept out of memory, is read again."""
        return (self._file or coco_json.read(self._annotations)).ground_truth()

    def check_files(self) -> None:
        """Raises UserError where the header of an image shows that it cannot be read as annotated."""
        checks.check_files(self._folder, self._names, self._sizes)

    def _arrays(self, file, sizes):
        """Of all annotations: image rows, boxes (float64 x y w h), labels, crowd; and why, and which, fall away."""
        annotations = file.annotations or []
        row_of = {image.id: row for row, image in enumerate(file.images)}
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        rows = np.array([row_of.get(a.image_id, -1) for a in annotations], np.int64)
        labels = np.array([label_of[a.category_id] for a in annotations], np.int32)
        boxes = np.array([a.bbox for a in annotations], np.float64).reshape(-1, 4).clip(-FARTHEST, FARTHEST)
        area = np.array([coco_json.area(a) for a in annotations], np.float64)
        crowd, ignore = (np.array([bool(getattr(a, k)) for a in annotations], bool) for k in ("iscrowd", "ignore"))
        x, y, w, h = boxes.T
        height, width = sizes[rows].T if len(sizes) else np.zeros((2, len(rows)))
        inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
        faults = {"of images that it does not list": rows < 0, "marked `ignore`": ignore,
                  "narrower or lower than a pixel": (w < 1) | (h < 1), "outside their images": ~inside,
                  "of area 0": area <= 0}
        return rows, boxes, labels, crowd, faults


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
