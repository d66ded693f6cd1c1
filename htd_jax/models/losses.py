"""From a batch to losses: the forward pass of training."""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped
from ml_collections import ConfigDict

from htd_jax.models import ba as ba_lib, stage0
from htd_jax.models.ba_loss import BETA, ba_loss
from htd_jax.models.htd import HTD, matmul_precision, normalise
from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.models.proposals import batch_proposals
from htd_jax.models.rpn import shapes_of
from htd_jax.models.rpn_loss import rpn_losses
from htd_jax.models.targets import MAX_ROI_POSITIVES, GroundTruth, RoIs, image_keys, refined_proposals, roi_targets
from htd_jax.ops.boxes import Stds
from htd_jax.ops.pyramid_crops import crop_own_and_all_levels, crop_own_level, roi_levels

STAGE_THRESHOLDS = (0.5, 0.6)
STAGE_WEIGHTS = (1.0, 0.5)
SFA_WEIGHT = 3.0

Pyramid = Sequence[Float[Array, "B _ _ C"]]
Logs = dict[str, Float[Array, ""]]


def losses(model: HTD, batch: dict[str, Shaped[Array, "B *_"]], key: Key[Array, ""],
           config: ConfigDict) -> tuple[Float[Array, ""], Logs]:
    """The total loss and a dict of every loss by the names of the original's logs, `s0.acc`, `s1.acc` and `loss`.

    `batch`: image, size, padded; boxes, labels and valid of the ground truth. All losses are normalised over the whole
    batch, so that one device and many give the same figures.
    """
    with matmul_precision(config.dtype):
        truth = GroundTruth(batch["boxes"], batch["labels"], batch["valid"])
        rpn_key, roi_key = jax.random.split(key)
        padded = batch["padded"]
        pyramid = model.features(normalise(batch["image"], batch["size"]), padded, remat=config.remat)
        logs = rpn_losses(model.rpn, pyramid, batch["size"], truth, rpn_key, config)
        logits, deltas = model.rpn(pyramid, padded)
        proposals, _, valid = batch_proposals(
            logits, deltas, shapes_of(pyramid), batch["size"], padded, config.train)
        logs |= roi_losses(model, pyramid, proposals, valid, batch["size"], padded, truth, roi_key, config)
        logs["loss"] = sum(value for name, value in logs.items() if "loss" in name)
    return logs["loss"], logs


def roi_losses(model: HTD, pyramid: Pyramid, proposals: Float[Array, "B N 4"], valid: Bool[Array, "B N"],
               size: Int[Array, "B 2"], padded: Int[Array, "B 2"], truth: GroundTruth, key: Key[Array, ""],
               config: ConfigDict) -> Logs:
    """The losses of SFA and both stages."""
    context, scene_logits = model.sfa(pyramid[-1], padded)
    logs = {"loss_global": sfa_loss(scene_logits, truth)}
    stage_keys = jax.random.split(key)
    sampler = functools.partial(sample_rois, truth=truth, num_classes=model.num_classes, config=config)

    rois = sampler(proposals, valid, STAGE_THRESHOLDS[0], stage0.STDS, key=stage_keys[0])
    crop = functools.partial(crop_own_level, form=model.roi_align)
    logits, deltas = model.stage0(jax.vmap(crop)(pyramid, rois.boxes), context)
    distance = masked_sum(smooth_l1(deltas - rois.deltas, BETA).sum(axis=-1), rois.positive)
    logs |= stage_losses("s0", logits, distance, rois, STAGE_WEIGHTS[0])

    proposals, valid = jax.vmap(refined_proposals, in_axes=(0, 0, None, 0))(rois, deltas, stage0.STDS, size)
    rois = sampler(proposals, valid, STAGE_THRESHOLDS[1], ba_lib.STDS, key=stage_keys[1])
    logits, distance = stage1(model, pyramid, context, rois, config.train.roi_samples)
    return logs | stage_losses("s1", logits, distance, rois, STAGE_WEIGHTS[1])


def sample_rois(proposals: Float[Array, "B N 4"], valid: Bool[Array, "B N"], threshold: float, stds: Stds, *,
                truth: GroundTruth, num_classes: int, config: ConfigDict, key: Key[Array, ""]) -> RoIs:
    """The RoIs of a stage."""
    def of_image(proposals, valid, truth, key):
        return roi_targets(proposals, valid, truth, threshold, stds, num_classes,
                           config.train.roi_samples, config.sampling, key)

    return jax.vmap(of_image)(proposals, valid, truth, image_keys(key, proposals.shape[0]))


def stage1(model: HTD, pyramid: Pyramid, context: Float[Array, "B C"], rois: RoIs,
           count: int) -> tuple[Float[Array, "B S K1"], Float[Array, ""]]:
    """Stage 1's logits, and the sum of its regression losses over the positives, which lie in the first slots."""
    slots = int(count * MAX_ROI_POSITIVES)
    boxes, targets, positive = (x[:, :slots] for x in (rois.boxes, rois.deltas, rois.positive))
    crop = functools.partial(crop_own_and_all_levels, form=model.roi_align)
    crops, all_levels = jax.vmap(crop)(pyramid, rois.boxes, positive)
    logits = model.pgraph(crops, context, rois.boxes, rois.valid, model.stage0.fc_cls)
    return logits, ba_loss(model.ba, all_levels, jax.vmap(roi_levels)(boxes), context, targets, positive)


def sfa_loss(logits: Float[Array, "B K1"], truth: GroundTruth) -> Float[Array, ""]:
    """Multi-label cross-entropy of the classes present, mean over all entries, weighted."""
    classes = jnp.arange(logits.shape[-1])[None, None]
    present = ((truth.labels[..., None] == classes) & truth.valid[..., None]).any(axis=1)
    return SFA_WEIGHT * optax.sigmoid_binary_cross_entropy(logits, present.astype(jnp.float32)).mean()


def stage_losses(name: str, logits: Float[Array, "B S K1"], distance: Float[Array, ""], rois: RoIs,
                 weight: float) -> Logs:
    """Cross-entropy, accuracy (percent) and smooth-L1 of a stage; `distance`: the last, summed over the positives."""
    number = jnp.maximum(rois.valid.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, rois.labels)
    correct = rois.valid & (jnp.argmax(logits, axis=-1) == rois.labels)
    return {
        f"{name}.loss_cls": weight * masked_sum(cross_entropy, rois.valid) / number,
        f"{name}.acc": 100.0 * correct.sum(dtype=jnp.float32) / number,
        f"{name}.loss_bbox": weight * distance / number,
    }
