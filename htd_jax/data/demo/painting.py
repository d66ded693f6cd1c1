"""The image of a demo scene's layout."""
import functools

import cv2
import numpy as np
from jaxtyping import UInt8

from htd_jax.data.demo.scenes import SIZE, Layout, warp

INK_CONTRAST, TEXTURE_CONTRAST = 90, 40  # least differences from the mean brightness of what lies under, of 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def paint(layout: Layout, photos: dict[str, np.ndarray], rng: np.random.Generator) -> UInt8[np.ndarray, "224 224 3"]:
    """RGB: the layout's sprites on a piece of one of `photos`, with a little noise."""
    canvas = _background(photos, rng)
    for item in layout.placed:
        region = canvas[item.window].astype(np.float32)
        colour_of = _ink if item.sprite.texture is None else _texture
        opacity = item.alpha[..., None] * np.float32(rng.uniform(0.85, 1) / 255)
        region += (colour_of(item, region, rng) - region) * opacity
        canvas[item.window] = np.rint(region)
    y, x = rng.integers(0, 64, size=2)
    amount = rng.uniform(0, 0.25)
    return cv2.addWeighted(canvas, 1, _noise()[y:y + SIZE, x:x + SIZE], amount, -128 * amount)


def _background(photos, rng):
    """A square piece of a photograph, mirrored or not, paler and brighter or darker."""
    photo = list(photos.values())[rng.integers(len(photos))]
    side = int(rng.integers(140, min(photo.shape[:2]) + 1))
    y, x = (int(rng.integers(0, n - side + 1)) for n in photo.shape[:2])
    piece = cv2.resize(photo[y:y + side, x:x + side], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    piece = cv2.flip(piece, 1) if rng.uniform() < 0.5 else piece
    contrast, level = rng.uniform(0.35, 0.8), rng.uniform(70, 185)
    return cv2.addWeighted(piece, contrast, piece, 0, level - contrast * np.mean(cv2.mean(piece)[:3]))


def _ink(item, region, rng):
    """One colour, lighter or darker than what it covers, a little brighter towards one side."""
    luma = _apart_from(float((region @ LUMA).mean()), INK_CONTRAST, 0, 255, rng)
    tint = rng.uniform(-60, 60, size=3)
    colour = (luma + tint - tint @ LUMA).astype(np.float32)
    slope = np.linspace(-1, 1, region.shape[1], dtype=np.float32) * np.float32(rng.uniform(-20, 20))
    return np.clip(colour + slope[None, :, None], 0, 255)


def _texture(item, region, rng):
    """The sprite's texture through its matrix, with another contrast, tint and brightness."""
    level = np.float32(_apart_from(float((region @ LUMA).mean()), TEXTURE_CONTRAST, 60, 195, rng))
    shown = warp(item.sprite.texture, item.matrix, item.alpha.shape, cv2.BORDER_REPLICATE).astype(np.float32)
    tint = rng.uniform(0.92, 1.08, size=3).astype(np.float32)
    return np.clip(((shown - shown.mean()) * np.float32(rng.uniform(0.7, 1.2)) + level) * tint, 0, 255)


def _apart_from(value, gap, low, high, rng):
    """A number in low..high that differs from `value` by at least `gap`; every such number is equally likely."""
    below, above = max(value - gap - low, 0), max(high - value - gap, 0)
    drawn = rng.uniform(0, below + above)
    return low + drawn if drawn < below else high - (drawn - below)


@functools.cache
def _noise():
    """Normal noise, mean 128 and deviation 32, uint8 [288, 288, 3]: scenes take windows of it, as drawing is slow."""
    noise = np.random.default_rng(0).normal(128, 32, (SIZE + 64, SIZE + 64, 3))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)
