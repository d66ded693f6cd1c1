"""A dataset of image files whose boxes have been read: what YOLO's and VOC's readers make."""
import os
import pathlib
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import UInt8

from htd_jax.data import checks, images
from htd_jax.data.coco import SMALLEST_SIDE, usable
from htd_jax.data.records import Category, Record, coco_ground_truth
from htd_jax.errors import UserError

Box = tuple[float, float, float, float]


class ListedDataset:
    """Images by path, each with its record; see `records.Dataset`. Filtered as CocoDataset is."""

    def __init__(self, entries: Sequence[tuple[pathlib.Path, Record]], names: Sequence[str], source: str,
                 training: bool = False):
        """`names`: of the classes, in the order of the labels; ids count from 1. `source` stands for it in errors.

        Raises UserError where no image is left to use, or out of training one is of another size than annotated.
        """
        self.categories = tuple(Category(i, name) for i, name in enumerate(names, start=1))
        records = [record for _, record in entries]
        sizes = np.array([(record.height, record.width) for record in records], np.int64).reshape(-1, 2)
        annotated = np.array([len(record.boxes) > 0 for record in records], bool)
        kept = usable(annotated, sizes) if training else np.arange(len(entries))
        if not len(kept):
            raise UserError(f"{source} has no usable image: none of its {len(entries)} has a box"
                            + f" and sides of at least {SMALLEST_SIDE} pixels" * training)
        self._entries = [entries[i] for i in kept]
        if not training:  # training may skip an image, a score counts every one
            checks.check_files("", [os.fspath(path) for path, _ in self._entries], sizes[kept])

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, index: SupportsIndex) -> Record:
        return self._entries[index][1]

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        path, record = self._entries[index]
        return images.read(path, (record.height, record.width))

    def ground_truth(self) -> dict:
        return coco_ground_truth(self)


def make_record(image_id: int, name: str, size: tuple[int, int], boxes: Sequence[Box] | np.ndarray,
                labels: Sequence[int], crowd: Sequence[bool]) -> Record:
    """A record of lists, without the boxes that no training can use: outside of the image, or less than a pixel.

    `size`: (height, width); boxes are x1 y1 x2 y2 in pixels.
    """
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    height, width = size
    inside = np.clip(boxes, 0, np.float32([width, height, width, height]))
    kept = (inside[:, 2:] - inside[:, :2] >= 1).all(1)
    return Record(image_id, name, height, width, boxes[kept], np.array(labels, np.int32)[kept],
                  np.array(crowd, bool)[kept])


def find_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder and its subfolders, by name, but for hidden ones ("._IMG.jpg" of a Mac)."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.EXTENSIONS and path.is_file()
                  and not path.name.startswith("."))


def relative(path: pathlib.Path, root: pathlib.Path) -> str:
    """`path` as seen from `root`, whole where it lies elsewhere."""
    return os.fspath(path.relative_to(root)) if path.is_relative_to(root) else os.fspath(path)
