"""What the RPN and the two stages are trained towards, for one image (no gradient anywhere here)."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from htd_jax.ops.boxes import Stds, decode, encode
from htd_jax.ops.matching import IGNORED, assign_anchors, assign_proposals
from htd_jax.ops.sampling import Sample, sample

MAX_ANCHOR_POSITIVES = 0.5  # of the anchors sampled
MAX_ROI_POSITIVES = 0.25  # of the RoIs sampled


class GroundTruth(NamedTuple):
    """What is annotated, in G slots an image."""

    boxes: Float[Array, "*B G 4"]
    labels: Int[Array, "*B G"]
    valid: Bool[Array, "*B G"]


class RoIs(NamedTuple):
    """Sampled RoIs in S slots, positives first. The label of background is num_classes; `deltas` are to be learned;
    `is_gt`: ground truth put among the proposals; `index` counts [ground truth, proposals]."""

    boxes: Float[Array, "*B S 4"]
    labels: Int[Array, "*B S"]
    deltas: Float[Array, "*B S 4"]
    positive: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]
    is_gt: Bool[Array, "*B S"]
    index: Int[Array, "*B S"]


def anchor_targets(anchors: Float[Array, "N 4"], size: Int[Array, "2"], truth: GroundTruth, count: int, rule: str,
                   key: Key[Array, ""] | None) -> tuple[Sample, Float[Array, "S 4"]]:
    """`Sample` of `count` anchors and the deltas of its positives (0 elsewhere).

    Only anchors inside the unpadded image take part.
    """
    h, w = size[0], size[1]
    inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < w) & (anchors[:, 3] < h)
    assigned = assign_anchors(anchors, inside, truth.boxes, truth.valid)
    chosen = sample(assigned, count, int(count * MAX_ANCHOR_POSITIVES), rule, key)
    owner = jnp.maximum(assigned[chosen.index] - 1, 0)
    deltas = encode(anchors[chosen.index], truth.boxes[owner], (1.0, 1.0, 1.0, 1.0))
    return chosen, jnp.where(chosen.positive[:, None], deltas, 0)


def roi_targets(proposals: Float[Array, "N 4"], valid: Bool[Array, "N"], truth: GroundTruth, threshold: float,
                stds: Stds, num_classes: int, count: int, rule: str, key: Key[Array, ""] | None) -> RoIs:
    """`RoIs` of `count` slots from `proposals`: matched first, then joined by the ground truth in front.

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


def refined_proposals(rois: RoIs, deltas: Float[Array, "S 4"], stds: Stds,
                      size: Int[Array, "2"]) -> tuple[Float[Array, "S 4"], Bool[Array, "S"]]:
    """Stage 1's proposals and their validity: the sampled RoIs moved, less those that are ground truth."""
    boxes = decode(rois.boxes, jax.lax.stop_gradient(deltas), stds, size)
    return boxes, rois.valid & ~rois.is_gt


def image_keys(key: Key[Array, ""], batch_size: int) -> Key[Array, "B"]:
    """One random key for each image `[B]`, the same whatever device the image is on."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch_size))
