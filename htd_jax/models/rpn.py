"""Region proposal network: its head. What it proposes: `proposals.py`; its losses: `rpn_loss.py`."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from htd_jax.models.layers import clear_padding, conv, normal
from htd_jax.ops.anchors import RATIOS, STRIDES
from htd_jax.ops.cells import surrounding_rows

STDS = (1.0, 1.0, 1.0, 1.0)

Levels = Sequence[Float[Array, "B _ _ C"]]  # P2..P6


class RPNHead(nnx.Module):
    """3x3 convolution and ReLU, then 3 objectness logits and 12 deltas a cell, shared by all levels."""

    def __init__(self, channels: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> None:
        make = dict(init=normal(0.01), dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, 3, **make)
        self.cls = conv(channels, len(RATIOS), 1, **make)
        self.reg = conv(channels, 4 * len(RATIOS), 1, **make)

    def __call__(self, pyramid: Levels, padded: Int[Array, "B 2"] | None = None
                 ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B 3 4 _ _"]]]:
        """Float32 logits of each level's anchors, in the order y, x, ratio; deltas of each ratio as maps.

        Few of the deltas are ever read, and to put them in the anchors' order takes long.
        """
        hidden = [jax.nn.relu(self.conv(clear_padding(features, padded, stride)))
                  for features, stride in zip(pyramid, STRIDES)]
        return tuple(map(list, zip(*map(self.outputs, hidden))))

    def outputs(self, hidden: Float[Array, "B H W C"]) -> tuple[Float[Array, "B N"], Float[Array, "B 3 4 H W"]]:
        """Logits and deltas of `hidden`: two 1x1 convolutions as one, which reads it once."""
        heads = self.cls, self.reg
        kernel, bias = (jnp.concatenate([getattr(head, name)[...] for head in heads], axis=-1).astype(hidden.dtype)
                        for name in ("kernel", "bias"))
        return jax.lax.platform_dependent(hidden, kernel, bias, cpu=outputs_by_cells, default=outputs_by_maps)

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
        logits, deltas = self.outputs(hidden)
        ratio = anchors % len(RATIOS)
        logits = jnp.take_along_axis(logits.reshape(*anchors.shape, -1), ratio[..., None], axis=2)[..., 0]
        deltas = jnp.take_along_axis(deltas[:, :, :, 0], ratio[:, None, None], axis=1)[:, 0]
        return logits, deltas.swapaxes(1, 2)


def outputs_by_cells(hidden: Float[Array, "B H W C"], kernel: Float[Array, "1 1 C O"],
                     bias: Float[Array, "O"]) -> tuple[Float[Array, "B N"], Float[Array, "B 3 4 H W"]]:
    """Float32 logits and deltas by a convolution."""
    both = jax.lax.conv_general_dilated(hidden, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    logits, deltas = jnp.split((both + bias[None, None, None]).astype(jnp.float32), [len(RATIOS)], axis=-1)
    return logits.reshape(len(hidden), -1), _by_ratio(jnp.moveaxis(deltas, -1, 1))


def outputs_by_maps(hidden: Float[Array, "B H W C"], kernel: Float[Array, "1 1 C O"],
                    bias: Float[Array, "O"]) -> tuple[Float[Array, "B N"], Float[Array, "B 3 4 H W"]]:
    """The same as 15 maps from the start: an accelerator stores 15 channels last as if they were 128."""
    both = jnp.einsum("bhwc,co->bohw", hidden, kernel[0, 0]) + bias[None, :, None, None]
    logits, deltas = jnp.split(both.astype(jnp.float32), [len(RATIOS)], axis=1)
    rows = jnp.moveaxis(logits, 1, -1).reshape(-1, logits.shape[-1] * len(RATIOS))
    # A barrier: of one reshape in place of two, a TPU's compiler makes code for each row, which takes it 20 s.
    return jax.lax.optimization_barrier(rows).reshape(len(hidden), -1), _by_ratio(deltas)


def _by_ratio(maps):
    return maps.reshape(len(maps), len(RATIOS), 4, *maps.shape[2:])


def surroundings(pyramid: Sequence[Float[Array, "_ _ C"]], anchors: Int[Array, "N"]) -> Float[Array, "N _"]:
    """For a CPU: the 3x3 cells about each of the `anchors` of one image, as rows of 9 * C."""
    seen, start = 0, 0
    for features in pyramid:
        height, width, channels = features.shape
        framed = jnp.pad(features, ((0, max(0, 3 - height)), (0, max(0, 3 - width)), (0, 0)))
        cell = (anchors - start) // len(RATIOS)
        window = lambda y, x, framed=framed: jax.lax.dynamic_slice(
            framed, (y - 1, x - 1, jnp.zeros_like(y)), (3, 3, framed.shape[2]))
        here = (cell >= 0) & (cell < height * width)
        seen += jnp.where(here[:, None], jax.vmap(window)(cell // width, cell % width).reshape(len(anchors), -1), 0)
        start += len(RATIOS) * height * width
    return seen


def shapes_of(pyramid: Levels) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level."""
    return tuple(features.shape[1:3] for features in pyramid)
