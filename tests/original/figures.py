"""Golden arrays, and how far ours are from them."""
from typing import NamedTuple

import numpy as np


class Figure(NamedTuple):
    """One figure of the original beside ours: `value` has to be at most `bound`, or at least where `least`."""

    name: str
    value: float
    bound: float
    least: bool = False

    @property
    def holds(self):
        return bool(self.value >= self.bound if self.least else self.value <= self.bound)

    def __str__(self):
        return f"{self.name}: {self.value:.3g} (bound: {'at least' if self.least else 'at most'} {self.bound:g})"


class Archive:
    """An .npz of golden figures. Of a big array it holds every `every`-th element of the flattened array."""

    def __init__(self, path):
        self._arrays = np.load(path)

    def __contains__(self, name):
        return name in self._arrays or f"{name}/sample" in self._arrays

    def __getitem__(self, name):
        return self._arrays[name]

    def under(self, prefix):
        """Names of entries that start with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._arrays.files if name.startswith(prefix)]

    def error(self, name, array):
        """Largest error of `array` by the root mean square of the golden array `name`.

        `array` may be the leading rows alone; any other difference in shape is an AssertionError.
        """
        array = np.asarray(array, np.float64)
        if name in self._arrays:
            golden = self._arrays[name].astype(np.float64)
            shape, rms = golden.shape, np.sqrt(np.mean(golden**2))
            ours, golden = array, golden[: len(array)]
        else:
            shape, rms = tuple(self._arrays[f"{name}/shape"]), self._arrays[f"{name}/mean_rms"][1]
            ours = array.reshape(-1)[:: int(self._arrays[f"{name}/every"])]
            golden = self._arrays[f"{name}/sample"][: len(ours)]
        assert array.shape[1:] == shape[1:] and len(array) <= shape[0], f"{name}: shape {array.shape} for {shape}"
        return float(np.abs(ours - golden).max() / rms)


def relative(value, golden):
    """|value - golden| / |golden|."""
    return float(abs(value - golden) / max(abs(golden), 1e-12))


def same_rows(boxes, golden, tolerance=0.01):
    """Share of the golden boxes `[n, 4]` that have one of ours within `tolerance` pixels."""
    distance = np.abs(golden[:, None] - boxes[None]).max(axis=-1)
    return float((distance.min(axis=1) < tolerance).mean())


def match(ours, golden):
    """Pairs detections greedily, the golden ones in their order, by class and IoU > .95.

    Args:
        ours, golden: (boxes [n, 4] x1 y1 x2 y2, scores [n], labels [n]) of one image.
    Returns:
        (share of the longer list that is matched, largest difference of score of a matched pair).
    """
    overlaps = np.where(golden[2][:, None] == ours[2][None], iou(golden[0], ours[0]), 0)
    differences = []
    for row, score in zip(overlaps, golden[1]):
        best = int(row.argmax()) if len(row) else 0
        if len(row) and row[best] > 0.95:
            differences.append(abs(score - ours[1][best]))
            overlaps[:, best] = 0
    return len(differences) / max(len(ours[1]), len(golden[1]), 1), float(max(differences, default=0))


def in_order(ours, golden, tie):
    """Share of positions with the same class and IoU > .95, or else a score within `tie`: two near ones swapped."""
    overlap = np.diagonal(iou(golden[0], ours[0]))
    same = (golden[2] == ours[2]) & (overlap > 0.95)
    return float((same | (np.abs(golden[1] - ours[1]) < tie)).mean())


def iou(a, b):
    """`[n, m]` of boxes `a [n, 4]` and `b [m, 4]`."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    area = lambda x: (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])
    return both / np.maximum(area(a)[:, None] + area(b)[None] - both, 1e-9)
