"""Linear soft-NMS, exact: since decayed scores only fall, `max_kept` picks give the best `max_kept` of all classes."""
import jax
import jax.numpy as jnp

from htd_jax.ops.boxes import pairwise_iou


def soft_nms(boxes, scores, iou_threshold, min_score, max_kept):
    """The best `max_kept` detections of `boxes [R, 4]` with `scores [R, classes]`, class by class.

    Only scores above `min_score` take part. The best is picked; every other score of its class is multiplied by
    (1 - IoU) where IoU >= `iou_threshold`; what falls below `min_score` is dropped; repeat.
    Returns boxes `[K, 4]`, decayed scores `[K]`, labels int32 `[K]` and valid bool `[K]`, in the order picked.
    """
    live = jnp.where(scores > min_score, scores, -jnp.inf).T  # [classes, R]: a pick touches one row

    def pick(state, _):
        live, best, holder = state
        label = jnp.argmax(best)
        roi, score = holder[label], best[label]
        iou = pairwise_iou(boxes[roi][None], boxes, floor=0)[0]
        row = live[label] * jnp.where(iou >= iou_threshold, 1 - iou, 1)
        row = jnp.where(row < min_score, -jnp.inf, row).at[roi].set(-jnp.inf)
        state = live.at[label].set(row), best.at[label].set(row.max()), holder.at[label].set(jnp.argmax(row))
        return state, (boxes[roi], score, label.astype(jnp.int32))

    start = live, live.max(axis=1), jnp.argmax(live, axis=1)
    _, (picked, score, labels) = jax.lax.scan(pick, start, length=max_kept)
    valid = score > -jnp.inf
    return picked, jnp.where(valid, score, 0), labels, valid
