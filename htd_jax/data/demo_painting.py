"""The picture of a demo scene's layout."""
import functools

import cv2
import numpy as np

from htd_jax.data.demo_scenes import SIZE, warp

CONTRAST = 65  # least difference of an ink's brightness from what lies under it, of 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def paint(layout, photos, rng):
    """uint8 [224, 224, 3] RGB: the layout's sprites on a piece of one of `photos`, with a little noise."""
    canvas = _background(photos, rng)
    for item in layout.placed:
        region = canvas[item.window].astype(np.float32)
        colour_of = _ink if item.sprite.texture is None else _picture
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
    contrast, level = rng.uniform(0.4, 0.9), rng.uniform(70, 185)
    return cv2.addWeighted(piece, contrast, piece, 0, level - contrast * np.mean(cv2.mean(piece)[:3]))


def _ink(item, region, rng):
    """One colour, lighter or darker than what it covers, a little brighter towards one side."""
    under = float((region @ LUMA).mean())
    darker, lighter = under - CONTRAST, 255 - (under + CONTRAST)
    if rng.uniform() * (max(darker, 0) + max(lighter, 0)) < darker:
        luma = rng.uniform(0, darker)
    else:
        luma = rng.uniform(255 - lighter, 255)
    tint = rng.uniform(-60, 60, size=3)
    colour = (luma + tint - tint @ LUMA).astype(np.float32)
    slope = np.linspace(-1, 1, region.shape[1], dtype=np.float32) * np.float32(rng.uniform(-20, 20))
    return np.clip(colour + slope[None, :, None], 0, 255)


def _picture(item, region, rng):
    """The sprite's texture through its matrix, brightness, contrast and tint varied."""
    shown = warp(item.sprite.texture, item.matrix, item.alpha.shape, cv2.BORDER_REPLICATE).astype(np.float32)
    tint = rng.uniform(0.85, 1.15, size=3).astype(np.float32)
    return np.clip((shown - 128) * tint * np.float32(rng.uniform(0.7, 1.2)) + np.float32(rng.uniform(100, 155)), 0, 255)


@functools.cache
def _noise():
    """Normal noise, mean 128 and deviation 32, uint8 [288, 288, 3]: scenes take windows of it, as drawing is slow."""
    noise = np.random.default_rng(0).normal(128, 32, (SIZE + 64, SIZE + 64, 3))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)
