"""Boxes as they are after an image has been resized and flipped; its pixels are in images.py."""
import numpy as np


def transform_boxes(boxes, scale, size, flip=False):
    """Boxes of an image as they are in its resized and perhaps flipped pixels.

    Args:
      boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the original.
      scale: float32 [2], (sx, sy) = new / old.
      size: (height, width) after resizing; boxes are clipped to it.
      flip: whether the image is mirrored left to right: x1' = w - x2, x2' = w - x1.

    Returns:
      float32 [n, 4].
    """
    height, width = size
    boxes = boxes * np.tile(np.float32(scale), 2)
    boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    if flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return boxes
