"""Which ground-truth box each anchor or proposal belongs to (the original's MaxIoUAssigner).

An assignment is int32 `[N]`: k > 0 is ground truth k - 1, 0 background, -1 ignored.
"""
import jax
import jax.numpy as jnp

from htd_jax.ops.boxes import pairwise_iou

IGNORED, BACKGROUND = -1, 0


def assign_proposals(boxes, valid, gt_boxes, gt_valid, threshold):
    """Assignment `[N]` of proposals `boxes [N, 4]`: the best ground truth where IoU >= `threshold`, else background.

    Ties go to the first ground truth. `valid [N]` and `gt_valid [G]` mask unused slots; unused proposals are ignored.
    """
    iou = jnp.where(gt_valid[None, :], pairwise_iou(boxes, gt_boxes), -1.0)
    best = jnp.argmax(iou, axis=1)
    positive = jnp.take_along_axis(iou, best[:, None], axis=1)[:, 0] >= threshold
    return jnp.where(valid, jnp.where(positive, best + 1, BACKGROUND), IGNORED).astype(jnp.int32)


def assign_anchors(anchors, eligible, gt_boxes, gt_valid, positive=0.7, negative=0.3, rescue=0.3):
    """Assignment `[A]` of `anchors [A, 4]`, of which only the `eligible [A]` take part.

    IoU >= `positive` takes the best ground truth, IoU < `negative` is background, between them ignored. Then, in
    index order, every ground truth whose best IoU is >= `rescue` takes *all* anchors that reach exactly that IoU,
    positives of another box included. One ground truth is looked at after the other, as many as there are, so that
    nothing of size anchors x boxes is ever stored.
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
    start = jnp.zeros(count), jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.int32)
    boxes_in_use = jnp.max(jnp.where(gt_valid, jnp.arange(1, gt_valid.shape[0] + 1), 0), initial=0)
    best, owner, rescuer = jax.lax.fori_loop(0, boxes_in_use, visit, start)
    assigned = jnp.where(best >= positive, owner, jnp.where(best < negative, BACKGROUND, IGNORED))
    assigned = jnp.where(rescuer > 0, rescuer, assigned)
    return jnp.where(eligible, assigned, IGNORED)
