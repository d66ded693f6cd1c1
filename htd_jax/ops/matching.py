"""Which ground-truth box each anchor or proposal belongs to (the original's MaxIoUAssigner).

An assignment k > 0 is to ground truth k - 1, 0 to the background; -1 is ignored.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.boxes import pairwise_iou

IGNORED, BACKGROUND = -1, 0


def assign_proposals(boxes: Float[Array, "N 4"], valid: Bool[Array, "N"], gt_boxes: Float[Array, "G 4"],
                     gt_valid: Bool[Array, "G"], threshold: float) -> Int[Array, "N"]:
    """Assignment of proposals: the best ground truth where IoU >= `threshold`, else background.

    Ties go to the first ground truth. Unused proposals are ignored.
    """
    iou = jnp.where(gt_valid[None, :], pairwise_iou(boxes, gt_boxes), -1.0)
    best = jnp.argmax(iou, axis=1)
    positive = jnp.take_along_axis(iou, best[:, None], axis=1)[:, 0] >= threshold
    return jnp.where(valid, jnp.where(positive, best + 1, BACKGROUND), IGNORED).astype(jnp.int32)


def assign_anchors(anchors: Float[Array, "A 4"], eligible: Bool[Array, "A"], gt_boxes: Float[Array, "G 4"],
                   gt_valid: Bool[Array, "G"], positive: float = 0.7, negative: float = 0.3,
                   rescue: float = 0.3) -> Int[Array, "A"]:
    """Assignment of anchors, of which only the `eligible` take part.

    IoU >= `positive` takes the best ground truth, IoU < `negative` is background, between them ignored. Then, in
    index order, every ground truth whose best IoU is >= `rescue` takes *all* anchors that reach exactly that IoU,
    positives of another box included. A loop visits the ground truths in use, so nothing of size A x G is ever stored.
    """
    def visit(g, state):
        best, owner, rescuer = state
        row = pairwise_iou(gt_boxes[g][None], anchors)[0]
        # Computed once: two fusions could round the same IoU differently, and the test for equality would fail.
        row = jax.lax.optimization_barrier(jnp.where(eligible & gt_valid[g], row, -1.0))
        top = row.max()
        better = row > best
        rescued = (row == top) & (top >= rescue)
        return jnp.maximum(best, row), jnp.where(better, g + 1, owner), jnp.where(rescued, g + 1, rescuer)

    count = anchors.shape[0]
    start = jnp.zeros(count, jnp.float32), jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.int32)
    boxes_in_use = jnp.max(jnp.where(gt_valid, jnp.arange(1, gt_valid.shape[0] + 1), 0), initial=0)
    best, owner, rescuer = jax.lax.fori_loop(0, boxes_in_use, visit, start)
    assigned = jnp.where(best >= positive, owner, jnp.where(best < negative, BACKGROUND, IGNORED))
    assigned = jnp.where(rescuer > 0, rescuer, assigned)
    return jnp.where(eligible, assigned, IGNORED)
