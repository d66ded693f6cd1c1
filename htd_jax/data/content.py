"""What annotations say, unfiltered and with all their faults, for inspection."""
import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from htd_jax.data import file_names, images
from htd_jax.data.records import Dataset
from htd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Content:
    """What annotations say, unfiltered: N images, M boxes."""

    ids: list
    names: list[str]
    sizes: Int64[np.ndarray, "N 2"]  # height, width
    categories: list[tuple[Any, str]]  # id, name
    boxes: Float64[np.ndarray, "M 4"]  # x, y, width, height; NaN where it is not four numbers
    image: Int64[np.ndarray, " M"]  # row of its image, -1 where that is not listed
    label: Int64[np.ndarray, " M"]  # row of its category, -1 where that is not listed
    crowd: Bool[np.ndarray, " M"]
    annotation_ids: list
    paths: list[pathlib.Path] | None  # None: the images are no files
    read: Callable[[int], UInt8[np.ndarray, "H W 3"]]


class _Category(msgspec.Struct):
    id: Any = None
    name: Any = None


class _Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = None


class _File(msgspec.Struct):
    images: list[_Image] = []
    categories: list[_Category] = []
    annotations: list[_Annotation] | None = None


def read_coco(annotations: str | os.PathLike, folder: str | os.PathLike) -> Content:
    """What a COCO file says, whatever is wrong with single entries. Raises UserError where it cannot be read at all."""
    data = images.read_bytes(pathlib.Path(annotations).expanduser(), "annotation")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"annotation file {annotations} is not a COCO detection file: {error}") from None
    folder, names = pathlib.Path(folder).expanduser(), [str(image.file_name) for image in file.images]
    try:
        paths = [folder / name for name in file_names.locate(names, folder, annotations)]
    except UserError:  # some are missing, which `file_inspection` finds
        paths = [folder / name for name in names]
    rows, labels = ({str(entry.id): k for k, entry in enumerate(entries)} for entries in (file.images, file.categories))
    boxes = file.annotations or []
    return Content(
        [image.id for image in file.images], names, _array([(i.height, i.width) for i in file.images], 2, 0),
        [(c.id, str(c.name)) for c in file.categories], _array([a.bbox for a in boxes], 4, np.nan),
        np.array([rows.get(str(a.image_id), -1) for a in boxes], np.int64),
        np.array([labels.get(str(a.category_id), -1) for a in boxes], np.int64),
        np.array([a.iscrowd not in (None, 0, False, "0") for a in boxes], bool), [a.id for a in boxes], paths,
        lambda row: images.read(paths[row]))


def of_dataset(dataset: Dataset, folder: str | os.PathLike | None = None) -> Content:
    """What an open data set says; its images are files that are named relative to `folder`, or no files."""
    records = [dataset.record(i) for i in range(len(dataset))]
    corners = np.concatenate([np.zeros((0, 4)), *(r.boxes for r in records)]).astype(np.float64)
    joined = lambda arrays, kind: np.concatenate([np.zeros(0, kind), *arrays]).astype(kind)
    return Content(
        [r.image_id for r in records], [r.name for r in records],
        np.array([(r.height, r.width) for r in records], np.int64).reshape(-1, 2),
        [(c.id, c.name) for c in dataset.categories],
        np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
        np.repeat(np.arange(len(records)), [len(r.boxes) for r in records]).astype(np.int64),
        joined([r.labels for r in records], np.int64), joined([r.crowd for r in records], bool),
        list(range(len(corners))), None if folder is None else [pathlib.Path(folder) / r.name for r in records],
        dataset.image)


def _array(rows, width, missing):
    """Rows of numbers; one that is something else is `missing` throughout."""
    kept = [_numbers(row, width) or (missing,) * width for row in rows]
    return np.array(kept, np.float64 if np.isnan(missing) else np.int64).reshape(-1, width)


def _numbers(row, width):
    try:
        numbers = tuple(float(value) for value in row)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == width and np.isfinite(numbers).all() else None
