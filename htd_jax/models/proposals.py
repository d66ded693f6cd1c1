"""Proposals: the best boxes of the region proposal network, of one image or of a batch."""
import jax
import jax.numpy as jnp

from htd_jax.models.rpn import STDS
from htd_jax.ops.anchors import cells_inside, grid_anchors
from htd_jax.ops.boxes import decode
from htd_jax.ops.nms import nms
from htd_jax.ops.top_k import top_k

NMS_IOU = 0.7


def batch_proposals(logits, deltas, shapes, size, padded, limits):
    """`propose` for every image: boxes `[B, N, 4]`, scores `[B, N]`, valid `[B, N]`.

    Anchors whose cell lies beyond `padded [B, 2]`, the original's own padding, do not take part.
    """
    def one(logits, deltas, size, padded):
        present = jnp.split(cells_inside(shapes, padded), _ends(logits))
        masked = [jnp.where(here, level, -jnp.inf) for here, level in zip(present, logits)]
        return propose(masked, deltas, shapes, size, limits.nms_pre, limits.proposals)

    return jax.vmap(one)(logits, deltas, size, padded)


def _ends(levels):
    """Where each level but the last ends in the joined list of anchors."""
    total, ends = 0, []
    for level in levels[:-1]:
        total += len(level)
        ends.append(total)
    return ends


def propose(logits, deltas, shapes, size, nms_pre, count):
    """Proposals of one image: boxes `[count, 4]` clipped to `size` (h, w), scores `[count]`, valid `[count]`.

    `logits`, `deltas`: lists over the levels, `[anchors]` and `[anchors, 4]`; `shapes` (height, width) of each. The
    `nms_pre` best of each level pass NMS at .7 within the level; the best `count` of all remain, by falling score.
    Logits of minus infinity mark anchors that do not take part. No gradient, no minimum size, nothing else masked.
    """
    slots = min(nms_pre, max(len(level) for level in logits))
    levels = [_best_of_level(*level, size, nms_pre, slots) for level in zip(logits, deltas, grid_anchors(shapes))]
    boxes, scores = (jnp.stack(part) for part in zip(*levels))
    kept, valid = jax.vmap(lambda b, s: nms(b, s, NMS_IOU, slots))(boxes, scores)
    boxes = jnp.take_along_axis(boxes, kept[..., None], axis=1).reshape(-1, 4)
    scores = jnp.where(valid, jnp.take_along_axis(scores, kept, axis=1), -jnp.inf).reshape(-1)
    boxes, scores = (jnp.pad(boxes, ((0, max(0, count - len(scores))), (0, 0))),
                     jnp.pad(scores, (0, max(0, count - len(scores))), constant_values=-jnp.inf))
    scores, order = top_k(scores, count)
    valid = scores > -jnp.inf
    return jnp.where(valid[:, None], boxes[order], 0), jnp.where(valid, scores, 0), valid


def _best_of_level(logits, deltas, anchors, size, nms_pre, slots):
    """Boxes `[slots, 4]` and scores `[slots]` of the `nms_pre` best anchors of a level; -inf in unused slots."""
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    scores = jnp.where(logits > -jnp.inf, jax.nn.sigmoid(logits), -jnp.inf)
    scores, index = top_k(scores, min(nms_pre, len(logits)))
    boxes = decode(jnp.asarray(anchors)[index], deltas[index], STDS, size)
    pad = slots - len(scores)
    return jnp.pad(boxes, ((0, pad), (0, 0))), jnp.pad(scores, (0, pad), constant_values=-jnp.inf)
