"""Scenes of the demo: sprites laid out on a photograph, and the picture of that layout.

A layout is made without painting, so that boxes are cheap. Big sprites lie under small ones, distractors among them.
A box is tight around what is left of its object, in pixels: x1 y1 of the first visible pixel, x2 y2 past the last.
"""
import dataclasses

import cv2
import numpy as np

from htd_jax.data.demo_sources import FIELD, Sources, Sprite

SIZE = 224  # pixels, square
SHORTEST, USUAL, LONGEST = 12.5, 44, 198  # an object's long side in pixels: triangular in its logarithm
OBJECTS, DISTRACTORS = (2, 7), (1, 3)  # drawn a scene, both ends included
MOST_HIDDEN = 0.2  # of an object by a later one
MOST_OVERLAP = 0.35  # of two boxes: intersection / the smaller one
TRIES = 8  # places tried before a sprite is left out


@dataclasses.dataclass(frozen=True)
class Placed:
    """A sprite at its place. `alpha` float32 [h, w] covers `window`; `matrix` maps the field's pixels to alpha's."""

    sprite: Sprite
    matrix: np.ndarray
    window: tuple[slice, slice]
    alpha: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sprites from back to front; `boxes` float32 [n, 4] and `labels` int32 [n] of those that are objects."""

    placed: tuple[Placed, ...]
    boxes: np.ndarray
    labels: np.ndarray


def layout(sources: Sources, rng: np.random.Generator) -> Layout:
    """Draw a scene: which sprites, how large, how turned, where."""
    pool = _draw(sources, rng)
    placed, owner = [], np.full((SIZE, SIZE), -1, np.int8)
    for size, sprite in sorted(pool, key=lambda item: -item[0]):
        transform = _transform(sprite, size, rng)
        for _ in range(TRIES):
            item = _place(sprite, *transform, rng)
            if _fits(item, placed, owner):
                owner[item.window][item.alpha > 0.4] = len(placed)
                placed.append(item)
                break
    objects = [k for k, item in enumerate(placed) if item.sprite.label >= 0]
    boxes = np.array([_extent(owner == k) for k in objects], np.float32).reshape(-1, 4)
    return Layout(tuple(placed), boxes, np.array([placed[k].sprite.label for k in objects], np.int32))


def _draw(sources, rng):
    """(size, sprite) of every object and distractor of a scene; classes are equally likely."""
    groups = [sources.objects[k] for k in rng.integers(len(sources.objects), size=rng.integers(*OBJECTS, endpoint=True))]
    kinds = rng.integers(len(sources.distractors), size=rng.integers(*DISTRACTORS, endpoint=True))
    groups += [sources.distractors[k] for k in kinds]
    sizes = np.exp(rng.triangular(*np.log((SHORTEST, USUAL, LONGEST)), size=len(groups)))
    return [(size, group[rng.integers(len(group))]) for size, group in zip(sizes, groups)]


def _transform(sprite, size, rng):
    """Matrix [2, 2] from field to scene with the outline's long side at `size`, and that outline's corners."""
    angle = np.deg2rad(rng.uniform(-sprite.turn, sprite.turn))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[rng.uniform(0.85, 1.15), rng.uniform(-0.15, 0.15)], [0, 1]])
    linear = turn @ slant
    points = sprite.points @ linear.T
    scale = size / (np.ptp(points, axis=0).max() + 1)
    return linear * scale, points.min(0) * scale, points.max(0) * scale


def _place(sprite, linear, low, high, rng):
    """The sprite somewhere inside the scene, its window a pixel wider than its outline."""
    width, height = np.ceil(high - low).astype(int) + 3
    x, y = rng.integers(0, SIZE - width + 1), rng.integers(0, SIZE - height + 1)
    matrix = np.column_stack([linear, 1.5 - low])
    scale = np.sqrt(abs(np.linalg.det(linear)))
    field = _warp(sprite.field, matrix, (height, width), scale)
    # The outline's slope spans some six pixels of the field: make it about one and a half of the scene.
    alpha = np.clip((field.astype(np.float32) / 255 - 0.5) * max(1, 4 * scale) + 0.5, 0, 1)
    return Placed(sprite, matrix, (slice(y, y + height), slice(x, x + width)), alpha)


def _warp(image, matrix, shape, scale):
    """`image` drawn through `matrix` on a canvas of `shape` (h, w); averaged first where that shrinks it."""
    if scale < 0.75:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
        shift = (np.array(ratio) - 1) / 2  # centres of pixels
        matrix = np.column_stack([matrix[:, :2] * ratio, matrix[:, 2] + matrix[:, :2] @ shift])
        image = small
    return cv2.warpAffine(image, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _fits(item, placed, owner):
    """Whether the sprite hides little of those below and its box is not nearly one of theirs."""
    ink = item.alpha > 0.4
    if not ink.any():
        return False
    below = owner[item.window]
    for k, other in enumerate(placed):
        if _overlap(item.window, other.window) > MOST_OVERLAP * min(item.alpha.size, other.alpha.size):
            if _overlap(item.window, other.window) > MOST_OVERLAP * max(item.alpha.size, other.alpha.size) / 2:
                return False
        left = np.count_nonzero(owner[other.window] == k)
        if np.count_nonzero((below == k) & ink) > MOST_HIDDEN * left:
            return False
    return True


def _overlap(a, b):
    h, w = (max(0, min(p.stop, q.stop) - max(p.start, q.start)) for p, q in zip(a, b))
    return h * w


def _extent(mask):
    """x1 y1 x2 y2 around the true pixels, of which there is at least one."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return x[0], y[0], x[-1] + 1, y[-1] + 1
