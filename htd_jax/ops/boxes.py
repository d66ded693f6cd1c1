"""Arithmetic on boxes and the delta codec.

Boxes are float32 `[..., 4]`, x1 y1 x2 y2, pixels of the resized image; widths have no +1.
"""
import jax.numpy as jnp

# |dw| and |dh| are clipped here before exp, so that no delta makes a box more than 62.5 times larger.
MAX_LOG_RATIO = 4.135166556742356


def areas(boxes):
    """Areas `[...]` of boxes `[..., 4]`, in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a, b):
    """Areas of overlap `[N, M]` of boxes `a [N, 4]` and `b [M, 4]`."""
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a, b, floor=1e-6):
    """Intersection over union `[N, M]` of boxes `a [N, 4]` and `b [M, 4]`.

    The union is at least `floor`, as everywhere in the original except its NMS, which divides
    plainly: `floor=0` gives its 0/0 = nan for two boxes without area, which no threshold exceeds.
    """
    overlap = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - overlap
    return overlap / (jnp.maximum(union, floor) if floor else union)


def clip(boxes, size):
    """Boxes `[..., 4]` cut to an image of `size` (h, w): x to 0..w, y to 0..h."""
    h, w = size[0].astype(boxes.dtype), size[1].astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.stack([w, h, w, h]))


def flip(boxes, width):
    """Boxes `[..., 4]` mirrored left to right in an image `width` pixels wide."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def _centres_sizes(boxes):
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low


def encode(boxes, targets, stds):
    """Deltas `[..., 4]` (dx, dy, dw, dh) that turn `boxes` into `targets`, divided by `stds` (4 numbers).

    Boxes or targets without area give infinities or nans: mask them, they are never positives.
    """
    centre, size = _centres_sizes(boxes)
    target_centre, target_size = _centres_sizes(targets)
    deltas = jnp.concatenate([(target_centre - centre) / size, jnp.log(target_size / size)], axis=-1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode(boxes, deltas, stds, size=None):
    """Boxes `[..., 4]` moved by `deltas [..., 4]`, which are in units of `stds` (4 numbers).

    dw and dh are clipped to +-log(1000/16) after scaling. With `size` (h, w) the result is cut to the image.
    """
    deltas = deltas.astype(jnp.float32) * jnp.asarray(stds, jnp.float32)
    centre, extent = _centres_sizes(boxes)
    new_centre = centre + extent * deltas[..., :2]
    half = extent * jnp.exp(jnp.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) * 0.5
    moved = jnp.concatenate([new_centre - half, new_centre + half], axis=-1)
    return moved if size is None else clip(moved, size)
