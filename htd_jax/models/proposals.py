"""Proposals: the best boxes of the region proposal network, of one image or of a batch."""
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from htd_jax.models.rpn import STDS
from htd_jax.ops.anchors import cells_inside, grid_anchors
from htd_jax.ops.boxes import decode
from htd_jax.ops.nms import nms
from htd_jax.ops.top_k import best, top_k

NMS_IOU = 0.7

Shapes = Sequence[tuple[int, int]]  # (height, width) of each level


class Proposals(NamedTuple):
    """N slots by falling score; scores of unused ones are 0."""

    boxes: Float[Array, "*B N 4"]
    scores: Float[Array, "*B N"]
    valid: Bool[Array, "*B N"]


def batch_proposals(logits: Sequence[Float[Array, "B _"]], deltas: Sequence[Float[Array, "B 3 4 _ _"]], shapes: Shapes,
                    size: Int[Array, "B 2"], padded: Int[Array, "B 2"], limits: ConfigDict) -> Proposals:
    """`propose` for every image. Anchors whose cell lies beyond `padded` do not take part.

    `limits`: config.train or config.test.
    """
    def of_image(logits, deltas, size, padded):
        present = jnp.split(cells_inside(shapes, padded), _ends(logits))
        masked = [jnp.where(inside, level, -jnp.inf) for inside, level in zip(present, logits)]
        return propose(masked, deltas, shapes, size, limits.nms_pre, limits.proposals)

    return jax.vmap(of_image)(list(logits), list(deltas), size, padded)


def _ends(levels):
    """Where each level but the last ends in the joined list of anchors."""
    total, ends = 0, []
    for level in levels[:-1]:
        total += len(level)
        ends.append(total)
    return ends


def propose(logits: Sequence[Float[Array, "_"]], deltas: Sequence[Float[Array, "3 4 _ _"]], shapes: Shapes,
            size: Int[Array, "2"], nms_pre: int, count: int) -> Proposals:
    """Proposals of one image in `count` slots, clipped to `size`.

    The `nms_pre` best anchors of each level pass NMS at .7 within the level; the best `count` of all levels remain.
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
    return Proposals(jnp.where(valid[:, None], boxes[order], 0), jnp.where(valid, scores, 0), valid)


def merge(views: Sequence[Proposals], count: int) -> tuple[Float[Array, "B N 4"], Bool[Array, "B N"]]:
    """Boxes and validity of the best `count` proposals of several views, given in pixels of the same images."""
    boxes = jnp.concatenate([view.boxes for view in views], axis=1)
    scores = jnp.concatenate([jnp.where(view.valid, view.scores, -jnp.inf) for view in views], axis=1)
    kept, valid = jax.vmap(lambda b, s: nms(b, s, NMS_IOU, count))(boxes, scores)
    return jnp.take_along_axis(boxes, kept[..., None], axis=1), valid


def _best_of_level(logits, deltas, anchors, size, nms_pre, slots):
    """Boxes `[slots, 4]` and scores `[slots]` of the `nms_pre` best anchors of a level, in any order.

    Scores of unused slots are -inf.
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    scores = jnp.where(logits > -jnp.inf, jax.nn.sigmoid(logits), -jnp.inf)
    scores, index = best(scores, min(nms_pre, len(logits)))  # NMS sorts them
    boxes = decode(jnp.asarray(anchors)[index], _of_anchors(deltas, index), STDS, size)
    pad = slots - len(scores)
    return jnp.pad(boxes, ((0, pad), (0, 0))), jnp.pad(scores, (0, pad), constant_values=-jnp.inf)


def _of_anchors(deltas, index):
    """Deltas `[N, 4]` of the anchors `index [N]` of a level, from its maps."""
    ratios, _, _, width = deltas.shape
    cell = index // ratios
    return deltas[index % ratios, :, cell // width, cell % width]
