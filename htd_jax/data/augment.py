"""Augmentation on the host: an image and its record become another image, already of its final size, with its record.

In this order: a crop that keeps all boxes, scale jitter with a window of fixed size, colour jitter. Flips come after,
as without augmentation. All is drawn from one generator, so it depends on seed, step and row alone.
"""
import dataclasses
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from htd_jax.data import images
from htd_jax.data.records import Record

_VISIBLE = 0.25  # share of a box's area that a window must show for the box to stay
_HUE = 0.05  # of a turn, by which full colour jitter shifts hues at most
Image = UInt8[np.ndarray, "_ _ 3"]


class Window(NamedTuple):
    """A rectangle of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def is_on(settings: ConfigDict) -> bool:
    """Whether any of `data.augment` is switched on."""
    return settings.scale is not None or settings.crop > 0 or settings.colour > 0


def augment(image: Image, record: Record, settings: ConfigDict, scale: tuple[int, int], shape: tuple[int, int],
            rng: np.random.Generator) -> tuple[Image, Record]:
    """Returns an image of at most `shape` (height, width), and its record in the pixels of that image.

    Args:
      settings: `data.augment`: `crop` (probability), `scale` (lo, hi) or None, `colour` (strength, 0..1).
      scale: (long, short) to which images are resized where nothing jitters.
    """
    if rng.random() < settings.crop:
        image, record = cut(image, record, safe_window(record, rng))
    factor = rng.uniform(*settings.scale) if settings.scale is not None else 1.0
    image, record = resize(image, record, _size(image, scale, shape, factor, settings.scale is not None))
    image, record = cut(image, record, random_window(image.shape[:2], shape, rng))
    return colour(image, settings.colour, rng) if settings.colour else image, record


def cut(image: Image, record: Record, window: Window) -> tuple[Image, Record]:
    """What a window shows. A box of which it shows less than a quarter, or less than a pixel, goes."""
    top, left, height, width = window
    if (top, left, height, width) == (0, 0, record.height, record.width):
        return image, record
    corner = np.float32([left, top, left, top])
    boxes = np.clip(record.boxes - corner, 0, np.float32([width, height, width, height]))
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (sides >= 1).all(1) & (sides.prod(1) >= _VISIBLE * (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1))
    shown = image[top:top + height, left:left + width]
    return shown, _replaced(record, shown, boxes[kept], kept)


def resize(image: Image, record: Record, size: tuple[int, int]) -> tuple[Image, Record]:
    """The image at `size` (height, width)."""
    resized = images.resize(image, size)
    factors = np.float32([size[1] / record.width, size[0] / record.height] * 2)
    return resized, _replaced(record, resized, record.boxes * factors, slice(None))


def safe_window(record: Record, rng: np.random.Generator) -> Window:
    """A window that holds every box whole; each side lies anywhere between the boxes and the image's edge.

    Without boxes it is at least half as high and as wide as the image.
    """
    if len(record.boxes):
        corners = record.boxes.reshape(-1, 2, 2)
        (left, top), (right, bottom) = corners[:, 0].min(0), corners[:, 1].max(0)
    else:
        left, right, top, bottom = (share * side for side in (record.width, record.height) for share in (0.25, 0.75))
    x1, y1 = (int(rng.uniform(0, max(edge, 0))) for edge in (left, top))
    x2, y2 = (int(np.ceil(rng.uniform(min(edge, end), end))) for edge, end in ((right, record.width),
                                                                              (bottom, record.height)))
    return Window(y1, x1, max(y2 - y1, 1), max(x2 - x1, 1))


def random_window(size: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window of `shape` anywhere in an image of `size`; the whole side where that is shorter."""
    height, width = (min(side, limit) for side, limit in zip(size, shape))
    top, left = (int(rng.integers(0, side - inner, endpoint=True)) for side, inner in zip(size, (height, width)))
    return Window(top, left, height, width)


def colour(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Jitters brightness, contrast and saturation by factors 1 +- strength / 2 and the hue by up to 18 degrees."""
    low, high = 1 - strength / 2, 1 + strength / 2
    brightness, contrast, saturation = rng.uniform(low, high, 3)
    shift = rng.uniform(-_HUE, _HUE) * strength
    mean = float(image.mean())
    image = cv2.convertScaleAbs(image, alpha=brightness * contrast, beta=brightness * mean * (1 - contrast))
    hue, saturated, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    hue = (hue.astype(np.int32) + round(shift * 256)).astype(np.uint8)  # a turn is 256
    return cv2.cvtColor(cv2.merge([hue, cv2.convertScaleAbs(saturated, alpha=saturation), value]),
                        cv2.COLOR_HSV2RGB_FULL)


def _size(image, scale, shape, factor, jitters):
    """(height, width) to resize to: as without jitter, times `factor`; only jitter may exceed `shape`."""
    height, width = images.resized_shape(*image.shape[:2], scale)
    s = factor if jitters else min(1.0, shape[0] / height, shape[1] / width)
    return max(1, round(height * s)), max(1, round(width * s))


def _replaced(record, image, boxes: Float32[np.ndarray, "G 4"], kept):
    return dataclasses.replace(record, height=image.shape[0], width=image.shape[1], boxes=boxes,
                               labels=record.labels[kept], crowd=record.crowd[kept])
