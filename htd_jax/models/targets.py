"""What the RPN and the two stages are trained towards, for one image (no gradient anywhere here)."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from htd_jax.ops.boxes import decode, encode
from htd_jax.ops.matching import IGNORED, assign_anchors, assign_proposals
from htd_jax.ops.sampling import sample

MAX_ANCHOR_POSITIVES = 0.5  # of the anchors sampled
MAX_ROI_POSITIVES = 0.25  # of the RoIs sampled


class GroundTruth(NamedTuple):
    """Boxes `[G, 4]` in pixels, labels int32 `[G]`, valid bool `[G]`."""

    boxes: jax.Array
    labels: jax.Array
    valid: jax.Array


class RoIs(NamedTuple):
    """Sampled RoIs, positives first: boxes `[K, 4]`, labels `[K]` (background: num_classes), deltas to learn `[K, 4]`,
    positive, valid and is_gt (ground truth put among the proposals) bool `[K]`, index `[K]` into [gt, proposals]."""

    boxes: jax.Array
    labels: jax.Array
    deltas: jax.Array
    positive: jax.Array
    valid: jax.Array
    is_gt: jax.Array
    index: jax.Array


def anchor_targets(anchors, size, truth, count, rule, key):
    """`Sample` of `count` anchors `[A, 4]` and the deltas `[count, 4]` of its positives (0 elsewhere).

    Only anchors inside the unpadded image `size` (h, w) take part.
    """
    h, w = size[0], size[1]
    inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < w) & (anchors[:, 3] < h)
    assigned = assign_anchors(anchors, inside, truth.boxes, truth.valid)
    chosen = sample(assigned, count, int(count * MAX_ANCHOR_POSITIVES), rule, key)
    owner = jnp.maximum(assigned[chosen.index] - 1, 0)
    deltas = encode(anchors[chosen.index], truth.boxes[owner], (1, 1, 1, 1))
    return chosen, jnp.where(chosen.positive[:, None], deltas, 0)


def roi_targets(proposals, valid, truth, threshold, stds, num_classes, count, rule, key):
    """`RoIs` of `count` slots from `proposals [N, 4]`: matched first, then joined by the ground truth in front.

    The ground-truth boxes are positives of themselves; it matters for duplicate boxes.
    """
    slots = len(truth.valid)
    itself = jnp.where(truth.valid, jnp.arange(1, slots + 1), IGNORED)
    matched = assign_proposals(proposals, valid, truth.boxes, truth.valid, threshold)
    assigned = jnp.concatenate([itself, matched])
    chosen = sample(assigned, count, int(count * MAX_ROI_POSITIVES), rule, key)
    boxes = jnp.concatenate([truth.boxes, proposals])[chosen.index]
    owner = jnp.maximum(assigned[chosen.index] - 1, 0)
    deltas = jnp.where(chosen.positive[:, None], encode(boxes, truth.boxes[owner], stds), 0)
    labels = jnp.where(chosen.positive, truth.labels[owner], num_classes)
    boxes = jnp.where(chosen.valid[:, None], boxes, 0)
    is_gt = chosen.positive & (chosen.index < slots)
    return RoIs(boxes, labels, deltas, chosen.positive, chosen.valid, is_gt, chosen.index)


def refined_proposals(rois, deltas, stds, size):
    """Stage 1's proposals `[K, 4]` and their validity: the sampled RoIs moved, less those that are ground truth."""
    boxes = decode(rois.boxes, jax.lax.stop_gradient(deltas), stds, size)
    return boxes, rois.valid & ~rois.is_gt


def image_keys(key, batch_size):
    """One random key for each image `[B]`, the same whatever device the image is on."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch_size))
