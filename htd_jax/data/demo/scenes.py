"""Scenes of the demo: sprites laid out where `painting` will paint them on a photograph, and their boxes.

A layout is made without painting, so that boxes are cheap. Big sprites lie under small ones, distractors among them.
A box is tight around what is left of its object, in pixels: x1 y1 of the first visible pixel, x2 y2 past the last.
"""
import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from htd_jax.data.demo.sources import Sources, Sprite

SIZE = 224  # pixels, square
DISTRACTOR_SHARES = (0.5, 0.25, 0.25)  # letters, ovals, pieces of photographs
SHORTEST, USUAL, LONGEST = 12.5, 80, 198  # an object's long side in pixels: triangular in its logarithm
OBJECTS, DISTRACTORS = (3, 8), (1, 2)  # drawn a scene, both ends included
MOST_HIDDEN = 0.2  # of what is left of a sprite, by one on top of it
MOST_OVERLAP = 0.3  # IoU of two sprites' windows
VISIBLE = 100  # opacity, of 255, above which a pixel belongs to a sprite
TRIES = 8  # places tried before a sprite is left out


@dataclasses.dataclass(frozen=True)
class Placed:
    """A sprite at its place. `alpha` covers `window`; `matrix` maps the field's pixels to alpha's."""

    sprite: Sprite
    matrix: Float[np.ndarray, "2 3"]
    window: tuple[slice, slice]
    alpha: UInt8[np.ndarray, "H W"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sprites from back to front; boxes and labels of those that are objects."""

    placed: tuple[Placed, ...]
    boxes: Float32[np.ndarray, "G 4"]
    labels: Int32[np.ndarray, " G"]


def layout(sources: Sources, rng: np.random.Generator) -> Layout:
    """Draw a scene: which sprites, how large, how turned, where."""
    placed, owner = [], np.full((SIZE, SIZE), -1, np.int8)
    for size, sprite in sorted(_draw(sources, rng), key=lambda item: -item[0]):
        matrix, alpha = _shape(sprite, size, rng)
        for _ in range(TRIES):
            item = Placed(sprite, matrix, _somewhere(alpha.shape, rng), alpha)
            if _fits(item, placed, owner):
                owner[item.window][alpha > VISIBLE] = len(placed)
                placed.append(item)
                break
    objects = [k for k, item in enumerate(placed) if item.sprite.label >= 0]
    boxes = np.array([_extent(owner == k) for k in objects], np.float32).reshape(-1, 4)
    return Layout(tuple(placed), boxes, np.array([placed[k].sprite.label for k in objects], np.int32))


def _draw(sources, rng):
    """(size, sprite) of every object and distractor of a scene; classes are equally likely."""
    classes = rng.integers(len(sources.objects), size=rng.integers(*OBJECTS, endpoint=True))
    kinds = rng.choice(len(sources.distractors), rng.integers(*DISTRACTORS, endpoint=True), p=DISTRACTOR_SHARES)
    groups = [sources.objects[k] for k in classes] + [sources.distractors[k] for k in kinds]
    sizes = np.exp(rng.triangular(*np.log((SHORTEST, USUAL, LONGEST)), size=len(groups)))
    return [(size, group[rng.integers(len(group))]) for size, group in zip(sizes, groups)]


def _shape(sprite, size, rng):
    """The sprite with its outline's long side at `size`: matrix [2, 3] from field to alpha, and alpha [h, w]."""
    angle = np.deg2rad(rng.uniform(-sprite.turn, sprite.turn))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ [[rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)], [0, 1]]
    points = sprite.points @ linear.T
    scale = size / (np.ptp(points, axis=0).max() + 1)
    width, height = np.ceil(np.ptp(points, axis=0) * scale).astype(int) + 3
    matrix = np.column_stack([linear * scale, 1.5 - points.min(0) * scale])
    field = warp(sprite.field, matrix, (height, width))
    # The outline's slope spans some six pixels of the field: make it about one and a half of the scene.
    steeper = max(1, 4 * scale)
    return matrix, cv2.addWeighted(field, steeper, field, 0, 127.5 * (1 - steeper))


def _somewhere(shape, rng):
    y, x = (int(rng.integers(0, SIZE - n + 1)) for n in shape)
    return slice(y, y + shape[0]), slice(x, x + shape[1])


def warp(image: UInt8[np.ndarray, "h w *channels"], matrix: Float[np.ndarray, "2 3"], shape: tuple,
         border: int = cv2.BORDER_CONSTANT) -> UInt8[np.ndarray, "H W *channels"]:
    """`image` drawn through `matrix` on a canvas of `shape` (H, W); averaged first where that shrinks it."""
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < 0.75:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio = np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]])
        matrix = np.column_stack([matrix[:, :2] * ratio, matrix[:, 2] + matrix[:, :2] @ ((ratio - 1) / 2)])
        image = small
    return cv2.warpAffine(image, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=border)


def _fits(item, placed, owner):
    """Whether the sprite hides little of those below, and no box is much like another."""
    below = owner[item.window][item.alpha > VISIBLE]
    for k, other in enumerate(placed):
        shared = _intersection(item.window, other.window)
        if shared > MOST_OVERLAP * (item.alpha.size + other.alpha.size - shared):
            return False
        if shared and np.count_nonzero(below == k) > MOST_HIDDEN * np.count_nonzero(owner[other.window] == k):
            return False
    return below.size > 0


def _intersection(a, b):
    h, w = (max(0, min(p.stop, q.stop) - max(p.start, q.start)) for p, q in zip(a, b))
    return h * w


def _extent(mask):
    """x1 y1 x2 y2 around the true pixels, of which there is at least one."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return x[0], y[0], x[-1] + 1, y[-1] + 1
