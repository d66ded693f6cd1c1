"""The losses of the region proposal network, over sampled anchors."""
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.models.rpn import Levels, RPNHead, shapes_of
from htd_jax.models.targets import GroundTruth, anchor_targets, image_keys
from htd_jax.ops.anchors import grid_anchors

BETA = 1 / 9


def rpn_losses(rpn: RPNHead, pyramid: Levels, size: Int[Array, "B 2"], truth: GroundTruth, key: Key[Array, ""],
               config: ConfigDict) -> dict[str, Float[Array, ""]]:
    """`loss_rpn_cls` and `loss_rpn_bbox` over the sampled anchors."""
    anchors, count = jnp.concatenate(grid_anchors(shapes_of(pyramid))), config.train.rpn_samples
    draw = lambda size, truth, key: anchor_targets(anchors, size, truth, count, config.sampling, key)
    chosen, targets = jax.vmap(draw)(size, truth, image_keys(key, size.shape[0]))
    logits, deltas = rpn.at(pyramid, chosen.index)
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, chosen.positive.astype(jnp.float32))
    distance = smooth_l1(deltas - targets, BETA).sum(axis=-1)
    negatives = (chosen.valid & ~chosen.positive).sum(axis=1)
    divisor = (jnp.maximum(chosen.positive.sum(axis=1), 1) + jnp.maximum(negatives, 1)).sum()
    return {"loss_rpn_cls": masked_sum(cross_entropy, chosen.valid) / divisor,
            "loss_rpn_bbox": masked_sum(distance, chosen.positive) / divisor}
