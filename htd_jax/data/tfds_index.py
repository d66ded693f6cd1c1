"""TFDS sets on disk, without TensorFlow: where their boxes are, their records by number, an index of the small parts.

Records are tf.Examples with encoded images. What batches are planned from (sizes, boxes) is inside them, so it is read
once for all records and kept in an index file beside the set.
"""
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import struct
import tempfile
import zipfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tqdm import tqdm

from htd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the features that detection needs; those that a set may lack are None."""

    image: str
    objects: str
    box: str
    label: str
    box_format: str  # of TFDS's BBoxFormat, "REL_YXYX" for most
    crowd: str | None
    image_id: str | None
    name: str | None


def find_set(name: str, folder: str | os.PathLike) -> pathlib.Path:
    """Directory of the newest prepared version of the TFDS set `name` ("coco/2017") under the data dir `folder`."""
    root = pathlib.Path(os.path.expanduser(folder or tfds.core.constants.DATA_DIR)) / name
    if (root / "dataset_info.json").is_file():  # name ends in the version
        return root
    versions = [path.parent for path in root.glob("*/dataset_info.json")
                if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
    if not versions:
        raise UserError(f"no prepared TFDS set in {root}: set data.tfds.name and data.tfds.dir, or make one from COCO "
                        "files with python -m htd_jax.prepare --coco DIR --tfds DIR")
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def find_fields(features: tfds.features.FeaturesDict, name: str | os.PathLike) -> Fields:
    """Finds the features of detection by their types; `name` stands for the set in errors."""
    groups = {}
    for key, feature in features.items():
        if isinstance(getattr(feature, "feature", None), tfds.features.FeaturesDict):
            found = _of(feature.feature, tfds.features.BBoxFeature), _of(feature.feature, tfds.features.ClassLabel)
            groups |= {key: found} if all(found) else {}
    image_keys = _of(features, tfds.features.Image)
    if not image_keys or not groups:
        raise UserError(f"TFDS set {name} cannot train a detector: it needs an image and a sequence with boxes and "
                        f"labels, and has {', '.join(features)}")
    objects = _any(groups, "objects", *groups)
    boxes, labels = groups[objects]
    group = features[objects].feature
    box_format = group[boxes[0]].bbox_format
    if box_format is None:
        raise UserError(f"TFDS set {name} does not say the format of its boxes ({objects}/{boxes[0]})")
    numbers = [key for key, feature in features.items() if feature.np_dtype in (np.int64, np.int32)]
    return Fields(
        image=_any(image_keys, "image", image_keys[0]), objects=objects, box=_any(boxes, "bbox", boxes[0]),
        label=_any(labels, "label", labels[0]), box_format=box_format.value,
        crowd=_any(group, "is_crowd", "iscrowd"),
        image_id=_any(numbers, "image/id", "image_id", "id"),
        name=_any(features, "image/filename", "filename", "file_name"),
    )


def open_records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """The serialised examples of a split, by number: ArrayRecord through TFDS, or TFRecord."""
    info = builder.info.splits[split]
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        return TfRecords(info.filepaths, info.num_examples)
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


class TfRecords:
    """Random access to TFRecord files: a record is its length (8 bytes), 4 of checksum, the data, 4 of checksum."""

    def __init__(self, paths: list, count: int):
        self._files = [open(os.fspath(path), "rb") for path in paths]
        self._places = [place for file in self._files for place in self._scan(file)]
        if len(self._places) != count:
            raise UserError(f"TFRecord files {paths[0]} ... hold {len(self._places)} records, not {count}: "
                            "prepare the set again")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        file, start, length = self._places[index]
        return os.pread(file.fileno(), length, start)  # unlike seek and read, safe among threads

    @staticmethod
    def _scan(file):
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            header = os.pread(file.fileno(), 8, at)
            length = struct.unpack("<Q", header)[0] if len(header) == 8 else end
            if at + 16 + length > end:
                raise UserError(f"TFRecord file {file.name} is truncated: prepare the set again")
            yield file, at + 12, length
            at += 16 + length


def parse(builder: tfds.core.DatasetBuilder, fields: Fields, record: bytes) -> dict:
    """Example of one record as numpy, its image still encoded (bytes)."""
    return builder.info.features.deserialize_example_np(record, decoders={fields.image: tfds.decode.SkipDecoding()})


def load_index(builder: tfds.core.DatasetBuilder, split: str, fields: Fields, records: Any) -> dict[str, np.ndarray]:
    """Reads the index of a split, or makes it and keeps it beside the set (in the user's cache if that is read-only).

    Returns:
      ids int64 [n], names [n], sizes int32 [n, 2] (height, width), starts int64 [n + 1] into the rows of
      boxes float32 [m, 4] (x1 y1 x2 y2 pixels), labels int32 [m], crowd bool [m].
    """
    info, directory = builder.info.splits[split], pathlib.Path(builder.data_dir)
    state = f"1 {info.num_examples} {info.num_bytes} {list(info.shard_lengths)}"
    cache = pathlib.Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "~/.cache"))) / "htd_jax" / "tfds"
    key = hashlib.sha256(os.fspath(directory.resolve()).encode()).hexdigest()[:16]
    places = (directory / f"detection_index-{split}.npz", cache / f"{key}-{split}.npz")
    for place in places:
        index = _read_index(place, state)
        if index is not None:
            return index
    index = _make_index(builder, split, fields, records)
    for place in places:
        try:
            _write_index(place, {**index, "state": state})
            break
        except OSError as error:
            logging.warning("index of %s cannot be kept in %s: %s", directory, place.parent, error.strerror)
    return index


def _read_index(path, state):
    try:
        with np.load(path) as index:
            return {key: index[key] for key in index.files if key != "state"} if str(index["state"]) == state else None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: made again


def _write_index(path, index):
    """Through a temporary file, since other processes may be writing or reading the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, **index)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _make_index(builder, split, fields, records):
    ids, names, sizes, boxes, labels, crowd = [], [], [], [np.zeros((0, 4))], [], []
    for row in tqdm(range(len(records)), desc=f"indexing {builder.name} {split}", unit=" images", disable=None):
        example = parse(builder, fields, records[row])
        objects = example[fields.objects]
        names.append(example[fields.name].decode() if fields.name else f"{split}[{row}]")
        try:
            width, height = Image.open(io.BytesIO(example[fields.image])).size
        except Exception:
            raise UserError(f"image {names[-1]} of TFDS set {builder.data_dir} is not an image") from None
        ids.append(int(example[fields.image_id]) if fields.image_id else row + 1)
        sizes.append((height, width))
        labels.append(np.asarray(objects[fields.label], np.int32).reshape(-1))
        box = np.asarray(objects[fields.box], np.float64).reshape(-1, 4)
        boxes.append(_to_pixels(box, fields.box_format, height, width))
        crowd.append(np.asarray(objects[fields.crowd] if fields.crowd else labels[-1] * 0, bool).reshape(-1))
    return dict(
        ids=np.array(ids, np.int64), names=np.array(names, str), sizes=np.array(sizes, np.int32).reshape(-1, 2),
        starts=np.cumsum([0, *map(len, labels)]), boxes=np.concatenate(boxes).astype(np.float32),
        labels=np.concatenate([np.zeros(0, np.int32), *labels]), crowd=np.concatenate([np.zeros(0, bool), *crowd]),
    )


def _to_pixels(boxes, box_format, height, width):
    """float64 [n, 4] in a TFDS format -> x1 y1 x2 y2 in pixels."""
    if box_format.endswith("YXYX"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if box_format.endswith("XYWH"):
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return boxes * [width, height, width, height] if box_format.startswith("REL") else boxes


def _of(features, feature_type):
    return [key for key, feature in features.items() if isinstance(feature, feature_type)]


def _any(keys, *wanted):
    return next((key for key in wanted if key in keys), None)
