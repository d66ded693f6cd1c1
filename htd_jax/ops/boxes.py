"""Arithmetic on boxes and the delta codec. Widths have no +1."""
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# |dw| and |dh| are clipped here before exp, so that no delta makes a box more than 62.5 times larger.
MAX_LOG_RATIO = 4.135166556742356

Stds = tuple[float, float, float, float]  # of dx, dy, dw, dh: deltas are divided by them


def areas(boxes: Float[Array, "N 4"]) -> Float[Array, "N"]:
    """In square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def intersections(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Areas of overlap. Of single coordinates: an axis of two costs a TPU as much as one of 128."""
    low, high = jnp.maximum, jnp.minimum
    side = lambda k: jnp.maximum(high(a[:, None, k + 2], b[None, :, k + 2]) - low(a[:, None, k], b[None, :, k]), 0)
    return side(0) * side(1)


def pairwise_iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"], floor: float = 1e-6) -> Float[Array, "N M"]:
    """Intersection over union.

    The union is at least `floor`, as everywhere in the original except its NMS, which divides
    plainly: `floor=0.0` gives its 0/0 = nan for two boxes without area, which no threshold exceeds.
    """
    overlap = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - overlap
    return overlap / (jnp.maximum(union, floor) if floor else union)


def clip(boxes: Float[Array, "N 4"], size: Int[Array, "2"]) -> Float[Array, "N 4"]:
    """Boxes cut to an image of `size`: x to 0..w, y to 0..h."""
    h, w = size[0].astype(boxes.dtype), size[1].astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.stack([w, h, w, h])[None])


def flip(boxes: Float[Array, "N 4"], width: Float[Array, ""]) -> Float[Array, "N 4"]:
    """Boxes mirrored left to right in an image `width` pixels wide."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def _centres_sizes(boxes):
    low, high = boxes[:, :2], boxes[:, 2:]
    return (low + high) * 0.5, high - low


def encode(boxes: Float[Array, "N 4"], targets: Float[Array, "N 4"], stds: Stds) -> Float[Array, "N 4"]:
    """Deltas that turn `boxes` into `targets`.

    Boxes or targets without area give infinities or nans: mask them, they are never positives.
    """
    centre, size = _centres_sizes(boxes)
    target_centre, target_size = _centres_sizes(targets)
    deltas = jnp.concatenate([(target_centre - centre) / size, jnp.log(target_size / size)], axis=-1)
    return deltas / jnp.asarray(stds, deltas.dtype)[None]


def decode(boxes: Float[Array, "N 4"], deltas: Float[Array, "N 4"], stds: Stds,
           size: Int[Array, "2"]) -> Float[Array, "N 4"]:
    """`boxes` moved by `deltas` and cut to the image. dw and dh are clipped to +-log(1000/16) after scaling."""
    deltas = deltas.astype(jnp.float32) * jnp.asarray(stds, jnp.float32)[None]
    centre, extent = _centres_sizes(boxes)
    new_centre = centre + extent * deltas[:, :2]
    half = extent * jnp.exp(jnp.clip(deltas[:, 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) * 0.5
    return clip(jnp.concatenate([new_centre - half, new_centre + half], axis=-1), size)
