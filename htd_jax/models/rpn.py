"""Region proposal network: its head and its losses. What it proposes: `proposals.py`."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from htd_jax.models.layers import clear_padding, conv, normal
from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.models.targets import GroundTruth, anchor_targets, image_keys
from htd_jax.ops.anchors import RATIOS, STRIDES, grid_anchors
from htd_jax.ops.cells import surrounding_rows

STDS = (1.0, 1.0, 1.0, 1.0)
BETA = 1 / 9

Levels = Sequence[Float[Array, "B _ _ C"]]  # P2..P6


class RPNHead(nnx.Module):
    """3x3 convolution and ReLU, then 3 objectness logits and 12 deltas a cell, shared by all levels."""

    def __init__(self, channels: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> None:
        make = dict(init=normal(0.01), dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, 3, **make)
        self.cls = conv(channels, len(RATIOS), 1, **make)
        self.reg = conv(channels, 4 * len(RATIOS), 1, **make)

    def __call__(self, pyramid: Levels, padded: Int[Array, "B 2"] | None = None
                 ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
        """Float32 logits and deltas of each level's anchors, in the order y, x, ratio."""
        hidden = [jax.nn.relu(self.conv(clear_padding(features, padded, stride)))
                  for features, stride in zip(pyramid, STRIDES)]
        return tuple(map(list, zip(*map(self.outputs, hidden))))

    def outputs(self, hidden: Float[Array, "B H W C"]) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """Logits and deltas of `hidden`: two 1x1 convolutions as one, which reads it once."""
        heads = self.cls, self.reg
        kernel, bias = (jnp.concatenate([getattr(head, name)[...] for head in heads], axis=-1).astype(hidden.dtype)
                        for name in ("kernel", "bias"))
        both = jax.lax.conv_general_dilated(hidden, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        logits, deltas = jnp.split((both + bias[None, None, None]).astype(jnp.float32), [len(RATIOS)], axis=-1)
        return logits.reshape(len(hidden), -1), deltas.reshape(len(hidden), -1, 4)

    def at(self, pyramid: Levels, anchors: Int[Array, "B N"]) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """Float32 logits and deltas of single `anchors`, indices among those of all levels.

        For the losses, whose gradient is 0 at all other anchors: a backward pass over whole maps would add up zeros.
        Anchors must lie inside the image, at least one cell from its border: what a border does is not reproduced.
        """
        by_rows = lambda pyramid, anchors: surrounding_rows(pyramid, anchors // len(RATIOS))
        seen = jax.lax.platform_dependent(pyramid, anchors, cpu=jax.vmap(surroundings), default=by_rows)
        kernel, bias = self.conv.kernel[...].astype(seen.dtype), self.conv.bias[...].astype(seen.dtype)
        hidden = seen @ kernel.reshape(-1, kernel.shape[-1]) + bias[None, None]
        hidden = jax.nn.relu(hidden)[:, None]  # an image of one row
        shape, ratio = (*anchors.shape, len(RATIOS), -1), (anchors % len(RATIOS))[..., None, None]
        logits, deltas = (jnp.take_along_axis(part.reshape(shape), ratio, axis=2)[:, :, 0]
                          for part in self.outputs(hidden))
        return logits[..., 0], deltas


def surroundings(pyramid: Sequence[Float[Array, "_ _ C"]], anchors: Int[Array, "N"]) -> Float[Array, "N _"]:
    """For a CPU: the 3x3 cells about each of the `anchors` of one image, as rows of 9 * C."""
    seen, start = 0, 0
    for features in pyramid:
        height, width, channels = features.shape
        framed = jnp.pad(features, ((0, max(0, 3 - height)), (0, max(0, 3 - width)), (0, 0)))
        cell = (anchors - start) // len(RATIOS)
        window = lambda y, x, framed=framed: jax.lax.dynamic_slice(framed, (y - 1, x - 1, 0), (3, 3, framed.shape[2]))
        here = (cell >= 0) & (cell < height * width)
        seen += jnp.where(here[:, None], jax.vmap(window)(cell // width, cell % width).reshape(len(anchors), -1), 0)
        start += len(RATIOS) * height * width
    return seen


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


def shapes_of(pyramid: Levels) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level."""
    return tuple(features.shape[1:3] for features in pyramid)
