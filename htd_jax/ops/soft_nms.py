"""Linear soft-NMS, exact: since decayed scores only fall, `max_kept` picks give the best `max_kept` of all classes."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from htd_jax.ops.boxes import pairwise_iou
from htd_jax.ops.nms import Detections, at_least_one


def soft_nms(boxes: Float[Array, "N 4"], scores: Float[Array, "N K"], iou_threshold: float, min_score: float,
             max_kept: int) -> Detections:
    """The best `max_kept` detections class by class, in the order picked, with decayed scores.

    Only scores above `min_score` take part. The best is picked; every other score of its class is multiplied by
    (1 - IoU) where IoU >= `iou_threshold`; what falls below `min_score` is dropped; repeat.
    """
    boxes, scores = at_least_one(boxes, scores)
    live = jnp.where(scores > min_score, scores, -jnp.inf).T  # [K, N]: a pick touches one row

    def pick(state, _):
        live, best, holder = state
        label = jnp.argmax(best)
        roi, score = holder[label], best[label]
        iou = pairwise_iou(boxes[roi][None], boxes, floor=0.0)[0]
        row = live[label] * jnp.where(iou >= iou_threshold, 1 - iou, 1)
        # Also where row is nan: -inf * 0, of a box that takes no part and equals the picked one.
        row = jnp.where(row >= min_score, row, -jnp.inf).at[roi].set(-jnp.inf)
        state = live.at[label].set(row), best.at[label].set(row.max()), holder.at[label].set(jnp.argmax(row))
        return state, (boxes[roi], score, label.astype(jnp.int32))

    start = live, live.max(axis=1), jnp.argmax(live, axis=1)
    _, (picked, score, labels) = jax.lax.scan(pick, start, length=max_kept)
    valid = score > -jnp.inf
    return Detections(picked, jnp.where(valid, score, 0), labels, valid)
