"""Static shapes: the buckets that images are padded to, and the slots of their boxes."""
from collections.abc import Sequence
from typing import Any

import numpy as np

STRIDE = 32  # padded sides are multiples of it
RANGE_BUCKETS = 5  # static shapes of each orientation in multi-scale training

Shape = tuple[int, int]  # height, width
Sizes = np.ndarray | Sequence[Shape]


def round_up(value: Any, multiple: int = STRIDE) -> Any:
    """The next multiple, of an integer or an array of integers."""
    return -(-value // multiple) * multiple


def buckets(scale: tuple[int, int], short_range: tuple[int, int] | None = None) -> tuple[Shape, ...]:
    """The few static padded shapes that hold every image resized to `scale`, of either orientation.

    Args:
      scale: (long, short) side in pixels.
      short_range: (lo, hi) of the short side in multi-scale training, which takes the place of `scale`'s.
    Returns:
      The shapes in order of area, portrait before landscape.
    """
    long, short = scale
    shorts = [short]
    if short_range is not None:
        shorts = np.linspace(*short_range, RANGE_BUCKETS + 1)[1:].astype(int).tolist()
    sides = sorted({round_up(min(short, long)) for short in shorts})
    shapes = [shape for side in sides for shape in ((round_up(long), side), (side, round_up(long)))]
    return tuple(dict.fromkeys(shapes))


def exact_shape(sizes: Sizes) -> Shape:
    """The shape of a batch padded as by the original: each side the largest of the `sizes`, rounded up."""
    height, width = round_up(np.max(sizes, 0))
    return int(height), int(width)


def padded_shape(sizes: Sizes, pad_to: str, shapes: Sequence[Shape]) -> Shape:
    """The shape to which a batch of resized `sizes` is padded.

    `pad_to` is "exact", or "bucket": the first of the static `shapes` (from `buckets`) that holds all of them.
    """
    needed = exact_shape(sizes)
    if pad_to == "exact":
        return needed
    for shape in shapes:
        if shape[0] >= needed[0] and shape[1] >= needed[1]:
            return shape
    raise ValueError(f"no bucket of {shapes} holds {needed}: a batch holds one orientation only")


def slots(counts: Sequence[int]) -> int:
    """G, the static number of ground-truth rows: the most boxes of any image, rounded up to 8, at least 8."""
    return int(round_up(max(1, max(counts, default=1)), 8))


def pad_rows(array: np.ndarray, count: int) -> np.ndarray:
    """Zeros after the rows of `array` up to `count` of them."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
