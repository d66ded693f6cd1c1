"""Greedy non-maximum suppression, exact, in static shapes.

Boxes are taken in blocks by falling score: what kept boxes suppress is dropped, then the block is resolved by iterating
`keep <- not (any kept, better box overlaps)` to its fixed point, which is the greedy answer. It stops as soon as
enough are kept, so nothing quadratic in the number of candidates is ever built and there is no cap on them.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.boxes import pairwise_iou
from htd_jax.ops.top_k import top_k

BLOCK = 256  # boxes; one at a time would be thousands of dependent steps, all at once a matrix of N x N
PART = 2048  # candidates that accelerators sort at a time; of longer lists few are looked at to the end


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
    if not len(boxes):
        return jnp.zeros(max_kept, jnp.int32), jnp.zeros(max_kept, bool)
    groups = jnp.zeros(len(boxes), jnp.int32) if groups is None else groups
    at_once, in_parts = (functools.partial(form, iou_threshold=iou_threshold, max_kept=max_kept)
                         for form in (_at_once, _in_parts))
    if len(boxes) <= PART:
        return at_once(boxes, scores, groups)
    return jax.lax.platform_dependent(boxes, scores, groups, cpu=at_once, default=in_parts)


def _at_once(boxes, scores, groups, iou_threshold, max_kept):
    order = jnp.argsort(-scores, stable=True)
    start = jnp.int32(0), jnp.zeros(max_kept, jnp.int32)
    kept_count, kept = _take(boxes, groups, order, jnp.sum(scores > -jnp.inf), iou_threshold, start)
    return kept, jnp.arange(max_kept) < kept_count


def _in_parts(boxes, scores, groups, iou_threshold, max_kept):
    """For accelerators: the best `PART` boxes, then the next as many, until enough are kept."""
    scores = jnp.where(scores == 0, 0, scores)  # or top_k put 0 before -0

    def unfinished(state):
        last, _, kept_count, _ = state
        return (last > -jnp.inf) & (kept_count < max_kept)

    def take_next(state):
        last, last_index, *kept = state
        behind = (scores < last) | ((scores == last) & (jnp.arange(len(scores)) > last_index))
        best, order = top_k(jnp.where(behind, scores, -jnp.inf), min(PART, len(scores)))
        return best[-1], order[-1], *_take(boxes, groups, order, jnp.sum(best > -jnp.inf), iou_threshold, kept)

    start = jnp.float32(jnp.inf), jnp.int32(-1), jnp.int32(0), jnp.zeros(max_kept, jnp.int32)
    _, _, kept_count, kept = jax.lax.while_loop(unfinished, take_next, start)
    return kept, jnp.arange(max_kept) < kept_count


def _take(boxes, groups, order, candidates, iou_threshold, state):
    """The number kept and `kept [max_kept]` after the first `candidates` boxes of `order [N]`."""
    max_kept, block = len(state[1]), min(BLOCK, len(order))
    order = jnp.pad(order, (0, -len(order) % block))

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
        return position + block, jnp.minimum(kept_count + keep.sum(dtype=jnp.int32), max_kept), kept

    return jax.lax.while_loop(unfinished, take_block, (jnp.int32(0), *state))[1:]


def multiclass_nms(boxes: Float[Array, "N 4"], scores: Float[Array, "N K"], iou_threshold: float, min_score: float,
                   max_kept: int) -> Detections:
    """The best `max_kept` detections with scores above `min_score`, class by class, by falling score."""
    boxes, scores = at_least_one(boxes, scores)
    rois, classes = scores.shape
    flat = jnp.where(scores > min_score, scores, -jnp.inf).reshape(-1)
    labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), rois)
    kept, valid = nms(jnp.repeat(boxes, classes, axis=0), flat, iou_threshold, max_kept, labels)
    return Detections(boxes[kept // classes], jnp.where(valid, flat[kept], 0), labels[kept], valid)


def at_least_one(boxes: Float[Array, "N 4"], scores: Float[Array, "N K"]) -> tuple[jax.Array, jax.Array]:
    """Both as they are; with one box that takes no part where there is none, for nothing can be taken from nothing."""
    missing = 0 if len(boxes) else 1
    rows = (0, missing), (0, 0)
    return jnp.pad(boxes, rows), jnp.pad(scores, rows, constant_values=-jnp.inf)


def _suppresses(boxes, groups, better, worse, iou_threshold):
    """Whether each of the boxes `better` (indices) would suppress each of `worse`: bool `[better, worse]`."""
    iou = pairwise_iou(boxes[better], boxes[worse], floor=0.0)
    return (iou > iou_threshold) & (groups[better][:, None] == groups[worse][None, :])


def _resolve(suppresses, alive):
    """Greedy survivors `[N]` of a block sorted by score, given who `suppresses [N, N]` whom and who is `alive [N]`."""
    earlier = jax.lax.optimization_barrier(jnp.triu(suppresses, k=1))  # or XLA computes it in every round

    def step(state):
        keep, _ = state
        new = alive & ~(earlier & keep[:, None]).any(axis=0)
        return new, (new != keep).any()

    return jax.lax.while_loop(lambda state: state[1], step, (alive, jnp.bool_(True)))[0]
