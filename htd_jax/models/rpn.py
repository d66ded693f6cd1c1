"""Region proposal network: its head and its losses. What it proposes: `proposals.py`."""
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from htd_jax.models.layers import clear_padding, conv, normal
from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.models.targets import anchor_targets, image_keys
from htd_jax.ops.anchors import RATIOS, STRIDES, grid_anchors
from htd_jax.ops.cells import surrounding_rows

STDS = (1.0, 1.0, 1.0, 1.0)
BETA = 1 / 9


class RPNHead(nnx.Module):
    """3x3 convolution and ReLU, then 3 objectness logits and 12 deltas a cell, shared by all levels."""

    def __init__(self, channels, *, dtype=None, rngs):
        make = dict(init=normal(0.01), dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, 3, **make)
        self.cls = conv(channels, len(RATIOS), 1, **make)
        self.reg = conv(channels, 4 * len(RATIOS), 1, **make)

    def __call__(self, pyramid, padded=None):
        """Per level float32 logits `[B, anchors]` and deltas `[B, anchors, 4]`, anchors in the order y, x, ratio.

        `padded`: as for the backbone.
        """
        hidden = [jax.nn.relu(self.conv(clear_padding(features, padded, stride))) for features, stride in zip(pyramid, STRIDES)]
        return tuple(map(list, zip(*map(self.outputs, hidden))))

    def outputs(self, hidden):
        """Logits `[B, A]` and deltas `[B, A, 4]` of `hidden [B, H, W, C]`: two 1x1 convolutions as one, which reads it once."""
        heads = self.cls, self.reg
        kernel, bias = (jnp.concatenate([getattr(head, name)[...] for head in heads], axis=-1).astype(hidden.dtype)
                        for name in ("kernel", "bias"))
        both = jax.lax.conv_general_dilated(hidden, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        logits, deltas = jnp.split((both + bias).astype(jnp.float32), [len(RATIOS)], axis=-1)
        return logits.reshape(len(hidden), -1), deltas.reshape(len(hidden), -1, 4)

    def at(self, pyramid, anchors):
        """Float32 logits `[B, N]` and deltas `[B, N, 4]` of single anchors: indices `[B, N]` among those of all levels.

        Of anchors inside the image, which is as much as three cells: what a border does is not reproduced. For the
        losses, whose gradient is 0 at all other anchors: a backward pass over whole maps would add up zeros.
        """
        by_rows = lambda pyramid, anchors: surrounding_rows(pyramid, anchors // len(RATIOS))
        seen = jax.lax.platform_dependent(pyramid, anchors, cpu=jax.vmap(surroundings), default=by_rows)
        kernel, bias = self.conv.kernel[...].astype(seen.dtype), self.conv.bias[...].astype(seen.dtype)
        hidden = jax.nn.relu(seen @ kernel.reshape(-1, kernel.shape[-1]) + bias)[:, None]  # an image of one row
        shape, ratio = (*anchors.shape, len(RATIOS), -1), (anchors % len(RATIOS))[..., None, None]
        logits, deltas = (jnp.take_along_axis(part.reshape(shape), ratio, axis=2)[:, :, 0] for part in self.outputs(hidden))
        return logits[..., 0], deltas


def surroundings(pyramid, anchors):
    """For a CPU: the 3x3 cells `[N, 9 * C]` about each of the `anchors [N]` of one image, P2..P6 `[H, W, C]`."""
    seen, start = 0, 0
    for features in pyramid:
        height, width, channels = features.shape
        framed = jnp.pad(features, ((0, max(0, 3 - height)), (0, max(0, 3 - width)), (0, 0)))
        cell = (anchors - start) // len(RATIOS)
        window = lambda y, x: jax.lax.dynamic_slice(framed, (y - 1, x - 1, 0), (3, 3, channels))
        here = (cell >= 0) & (cell < height * width)
        seen += jnp.where(here[:, None], jax.vmap(window)(cell // width, cell % width).reshape(len(anchors), -1), 0)
        start += len(RATIOS) * height * width
    return seen


def rpn_losses(rpn, pyramid, size, truth, key, config):
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


def shapes_of(pyramid):
    """(height, width) of each level."""
    return tuple(features.shape[1:3] for features in pyramid)
