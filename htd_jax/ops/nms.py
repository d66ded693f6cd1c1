"""Greedy non-maximum suppression, exact, in static shapes.

Boxes are taken in blocks by falling score: what kept boxes suppress is dropped, then the block is resolved by iterating
`keep <- not (any kept, better box overlaps)` to its fixed point, which is the greedy answer. It stops as soon as
enough are kept, so nothing quadratic in the number of candidates is ever built and there is no cap on them.
"""
import jax
import jax.numpy as jnp

from htd_jax.ops.boxes import pairwise_iou

BLOCK = 256


def nms(boxes, scores, iou_threshold, max_kept, groups=None):
    """Indices int32 `[max_kept]` of the kept boxes by falling score, and which of these slots are in use (bool).

    `boxes [N, 4]`, `scores [N]` (-inf marks an unused slot). A box is suppressed by a kept, better one of the same
    group (`groups` int [N]: classes or levels) with IoU strictly greater than the threshold, widths without +1;
    0/0 does not suppress. Equal scores: the first index is the better.
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


def multiclass_nms(boxes, scores, iou_threshold, min_score, max_kept):
    """The best `max_kept` detections of `boxes [R, 4]` with `scores [R, classes]` above `min_score`, class by class.

    Returns boxes `[K, 4]`, scores `[K]`, labels int32 `[K]` and valid bool `[K]`, by falling score.
    """
    rois, classes = scores.shape
    flat = jnp.where(scores > min_score, scores, -jnp.inf).reshape(-1)
    labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), rois)
    kept, valid = nms(jnp.repeat(boxes, classes, axis=0), flat, iou_threshold, max_kept, labels)
    return boxes[kept // classes], jnp.where(valid, flat[kept], 0), labels[kept], valid


def _suppresses(boxes, groups, better, worse, iou_threshold):
    """Whether each of the boxes `better` (indices) would suppress each of `worse`: bool `[better, worse]`."""
    iou = pairwise_iou(boxes[better], boxes[worse], floor=0)
    return (iou > iou_threshold) & (groups[better][:, None] == groups[worse][None, :])


def _resolve(suppresses, alive):
    """Greedy survivors `[K]` of a block sorted by score, given who `suppresses [K, K]` whom and who is `alive [K]`."""
    earlier = jnp.triu(suppresses, k=1)

    def step(state):
        keep, _ = state
        new = alive & ~(earlier & keep[:, None]).any(axis=0)
        return new, (new != keep).any()

    return jax.lax.while_loop(lambda state: state[1], step, (alive, jnp.bool_(True)))[0]
