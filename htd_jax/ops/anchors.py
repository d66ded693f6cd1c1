"""The grid of anchors of the region proposal network."""
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALE = 8


def level_anchors(height: int, width: int, stride: int) -> Float[np.ndarray, "A 4"]:
    """Anchors of one level in the order y, x, ratio.

    Centred on `(x * stride, y * stride)`, without the half pixel that others add;
    width `stride * 8 / sqrt(r)` and height `stride * 8 * sqrt(r)` for each height/width ratio r.
    They are constants of the shape, hence numpy: computed once while tracing.
    """
    roots = np.sqrt(np.asarray(RATIOS, np.float32))
    half_w, half_h = stride * SCALE / roots / 2, stride * SCALE * roots / 2
    base = np.stack([-half_w, -half_h, half_w, half_h], axis=-1).astype(np.float32)
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def grid_anchors(shapes: Sequence[tuple[int, int]]) -> list[Float[np.ndarray, "_ 4"]]:
    """`level_anchors` for the `(height, width)` of each level, P2..P6."""
    return [level_anchors(h, w, stride) for (h, w), stride in zip(shapes, STRIDES)]


def cells_inside(shapes: Sequence[tuple[int, int]], padded: Int[Array, "2"]) -> Bool[Array, "A"]:
    """Whether each anchor's cell lies in the first `padded` pixels, all levels joined."""
    cells = [np.repeat(np.indices(shape).reshape(2, -1) * stride, len(RATIOS), axis=1)
             for shape, stride in zip(shapes, STRIDES)]
    y, x = np.concatenate(cells, axis=1).astype(np.int32)
    return (y < padded[0]) & (x < padded[1])
