"""Boxes as they are after an image has been resized and flipped; its pixels are in images.py."""
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def transform_boxes(boxes: Float32[np.ndarray, "G 4"], scale: np.ndarray | Sequence,
                    size: np.ndarray | Sequence, flip: bool = False) -> Float32[np.ndarray, "G 4"]:
    """Boxes of an image (x1 y1 x2 y2) in its resized and perhaps flipped pixels.

    Args:
      scale: (sx, sy) = new / old.
      size: (height, width) after resizing; boxes are clipped to it.
      flip: whether the image is mirrored left to right: x1' = w - x2, x2' = w - x1.
    """
    height, width = size
    boxes = boxes * np.tile(np.float32(scale), 2)
    boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    if flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return boxes
