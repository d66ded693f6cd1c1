"""Images larger than the model sees: where their tiles lie, and the tiles' detections as those of one image."""
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from htd_jax.errors import UserError
from htd_jax.ops.nms import nms

_SLOTS = 256  # candidates are filled up to a multiple of it, so that few shapes are compiled


def corners(size: tuple[int, int], tile: Sequence, overlap: float | int) -> list[tuple[int, int]]:
    """(y, x) of the tiles that cover an image, row by row, all in pixels.

    Args:
      size: (height, width) of the image.
      tile: (height, width); where the image is smaller, a tile is cut off at its end.
      overlap: the least share of its side that a tile shares with the next, below 1.
    """
    check(tile, overlap)
    rows, columns = (_starts(whole, part, overlap) for whole, part in zip(size, tile))
    return [(y, x) for y in rows for x in columns]


def check(tile: Sequence, overlap: float | int) -> None:
    """UserError names a tile or an overlap that is impossible."""
    if len(tile) != 2 or not all(isinstance(side, int) and side >= 1 for side in tile):
        raise UserError(f"tile (={tile}) must be (height, width) in pixels")
    if not 0 <= overlap < 1:
        raise UserError(f"overlap (={overlap}) must be at least 0 and below 1")


def _starts(whole, part, overlap):
    """Where tiles of one axis begin: evenly spread, the last one ends with the image."""
    stride = max(1, int(part * (1 - overlap)))
    count = max(0, math.ceil((whole - part) / stride)) + 1
    return np.linspace(0, max(0, whole - part), count).round().astype(int).tolist()


def merge(found: list[dict[str, np.ndarray]], corners: list[tuple[int, int]],
          iou_threshold: float) -> dict[str, np.ndarray]:
    """The detections of all tiles in pixels of the image, best first, after NMS within each class.

    Args:
      found: `boxes` [n, 4], `scores` [n] and `labels` [n] of each tile.
      corners: (y, x) of each tile.
      iou_threshold: above which the better of two boxes of one class suppresses the other.
    Returns: `boxes`, `scores`, `labels`.
    """
    boxes = np.concatenate([f["boxes"] + np.float32([x, y, x, y]) for f, (y, x) in zip(found, corners)])
    scores, labels = (np.concatenate([f[name] for f in found]) for name in ("scores", "labels"))
    slots = _SLOTS * max(1, math.ceil(len(scores) / _SLOTS))
    filler = slots - len(scores)
    kept, valid = nms(jnp.pad(boxes, ((0, filler), (0, 0))), jnp.pad(scores, (0, filler), constant_values=-jnp.inf),
                      iou_threshold, slots, jnp.pad(labels, (0, filler)))
    kept = np.asarray(kept)[np.asarray(valid)]
    return dict(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])
