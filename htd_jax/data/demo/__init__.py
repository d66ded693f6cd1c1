"""The `demo` source: scenes composed on the fly from what installed packages carry, so that nothing is downloaded.

Ten classes: handwritten digits, 13 to 200 pixels long, overlapping, among letters, faces and pieces of photographs, on
photographs. Scene i of a split is the same every time it is asked for; the two splits share no digit, distractor or
photograph.
"""
import functools
from typing import SupportsIndex

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from htd_jax.data.demo import painting, scenes, sources
from htd_jax.data.records import Category, Record, coco_ground_truth

SCENES = {"train": 4000, "val": 200}
LAYOUT, PAINT = 0, 1  # streams of random numbers of a scene


class DemoDataset:
    """A split's scenes; see `records.Dataset`. Without crowds, and `image` never fails."""

    categories = tuple(Category(i + 1, name) for i, name in enumerate(sources.CLASSES))

    def __init__(self, config: ConfigDict | None, split: str):
        """`config` has no say in the scenes: figures measured on them can be compared."""
        del config
        self._split = split
        self._sources = sources.load(split)
        self._record = functools.cache(self._make_record)  # composing takes a millisecond, and epochs repeat

    def __len__(self) -> int:
        return SCENES[self._split]

    def record(self, index: SupportsIndex) -> Record:
        """Boxes are tight around what is visible."""
        return self._record(int(index))

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "224 224 3"]:
        return painting.paint(self._layout(index), self._sources.photos, self._rng(index, PAINT))

    def ground_truth(self) -> dict:
        return coco_ground_truth(self)

    def _make_record(self, index):
        scene = self._layout(index)
        name = f"demo_{self._split}_{index:05d}"
        crowd = np.zeros(len(scene.labels), bool)
        return Record(index + 1, name, scenes.SIZE, scenes.SIZE, scene.boxes, scene.labels, crowd)

    def _layout(self, index):
        return scenes.layout(self._sources, self._rng(index, LAYOUT))

    def _rng(self, index, stream):
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return np.random.default_rng((self._split == "val", index, stream))
