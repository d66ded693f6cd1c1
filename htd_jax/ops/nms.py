"""Greedy non-maximum suppression, exact, in static shapes.

Boxes are taken in blocks by falling score: what kept boxes suppress is dropped, then the block is resolved by iterating
`keep <- not (any kept, better box overlaps)` to its fixed point, which is the greedy answer. It stops as soon as
enough are kept, so nothing quadratic in the number of candidates is ever built and there is no cap on them.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.boxes import pairwise_iou

BLOCK = 256  # boxes; one at a time would be thousands of dependent steps, all at once a matrix of N x N


class Detections(NamedTuple):
    """The detections of an image in D slots; in unused ones scores are 0."""

    boxes: Float[Array, "D 4"]
    scores: Float[Array, "D"]
    labels: Int[Array, "D"]
    valid: Bool[Array, "D"]


def nms(boxes: Float[Array, "N 4"], scores: Float[Array, "N"], iou_threshold: float, max_kept: int,
        groups: Int[Array, "N"] | None = None) -> tuple[Int[Array, "D"], Bool[Array, "D"]]:
    """Indices of the kept boxes by falling score, in `max_kept` slots, and which of these are valid.

    A score of -inf marks an unused slot. A kept, better box of the same group (`groups`: classes or levels) suppresses
    a box with IoU strictly greater than the threshold; 0/0 does not suppress. Equal scores: the first index is better.
    """
    count = boxes.shape[0]
    block = min(BLOCK, count)
    groups = jnp.zeros(count, jnp.int32) if groups is None else groups
    order = jnp.pad(jnp.argsort(-scores, stable=True), (0, -count % block))
    candidates = jnp.sum(scores > -jnp.inf)

    def unfinished(state):
        position, kept_count, _ = state
        return (position < candidates) & (kept_count < max_kept)

    def take_block(state):
        position, kept_count, kept = state
        index = jax.lax.dynamic_slice(order, (position,), (block,))
        in_use = jnp.arange(max_kept) < kept_count
        beaten = _suppresses(boxes, groups, kept, index, iou_threshold) & in_use[:, None]
        alive = (position + jnp.arange(block) < candidates) & ~beaten.any(axis=0)
        keep = _resolve(_suppresses(boxes, groups, index, index, iou_threshold), alive)
        slot = jnp.where(keep, kept_count + jnp.cumsum(keep) - 1, max_kept)
        kept = kept.at[slot].set(index.astype(jnp.int32), mode="drop")
        return position + block, jnp.minimum(kept_count + keep.sum(), max_kept), kept

    start = jnp.int32(0), jnp.int32(0), jnp.zeros(max_kept, jnp.int32)
    _, kept_count, kept = jax.lax.while_loop(unfinished, take_block, start)
    return kept, jnp.arange(max_kept) < kept_count


def multiclass_nms(boxes: Float[Array, "N 4"], scores: Float[Array, "N K"], iou_threshold: float, min_score: float,
                   max_kept: int) -> Detections:
    """The best `max_kept` detections with scores above `min_score`, class by class, by falling score."""
    rois, classes = scores.shape
    flat = jnp.where(scores > min_score, scores, -jnp.inf).reshape(-1)
    labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), rois)
    kept, valid = nms(jnp.repeat(boxes, classes, axis=0), flat, iou_threshold, max_kept, labels)
    return Detections(boxes[kept // classes], jnp.where(valid, flat[kept], 0), labels[kept], valid)


def _suppresses(boxes, groups, better, worse, iou_threshold):
    """Whether each of the boxes `better` (indices) would suppress each of `worse`: bool `[better, worse]`."""
    iou = pairwise_iou(boxes[better], boxes[worse], floor=0.0)
    return (iou > iou_threshold) & (groups[better][:, None] == groups[worse][None, :])


def _resolve(suppresses, alive):
    """Greedy survivors `[N]` of a block sorted by score, given who `suppresses [N, N]` whom and who is `alive [N]`."""
    earlier = jnp.triu(suppresses, k=1)

    def step(state):
        keep, _ = state
        new = alive & ~(earlier & keep[:, None]).any(axis=0)
        return new, (new != keep).any()

    return jax.lax.while_loop(lambda state: state[1], step, (alive, jnp.bool_(True)))[0]
