"""Feature pyramid network: C2..C5 -> P2..P6."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from htd_jax.models.layers import clear_padding, conv
from htd_jax.ops.pyramid_crops import STRIDES


class FPN(nnx.Module):
    """1x1 laterals, top-down sums, 3x3 outputs, all with bias and without norm; P6 is every second pixel of P5."""

    def __init__(self, inputs: Sequence[int], channels: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> None:
        self.lateral_convs = nnx.List([conv(i, channels, 1, dtype=dtype, rngs=rngs) for i in inputs])
        self.fpn_convs = nnx.List([conv(channels, channels, 3, dtype=dtype, rngs=rngs) for _ in inputs])

    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]],
                 padded: Int[Array, "B 2"] | None = None) -> list[Float[Array, "B _ _ C"]]:
        """P2..P6 from the backbone's four maps."""
        sums = [lateral(x) for lateral, x in zip(self.lateral_convs, features)]
        for k in reversed(range(len(sums) - 1)):
            sums[k] = sums[k] + upsample(sums[k + 1], sums[k].shape[1:3])
        outputs = [output(clear_padding(x, padded, stride))
                   for output, x, stride in zip(self.fpn_convs, sums, STRIDES)]
        return [*outputs, outputs[-1][:, ::2, ::2]]


def upsample(x: Float[Array, "B _ _ C"], shape: tuple[int, int]) -> Float[Array, "B H W C"]:
    """Nearest-neighbour enlargement to `shape` (H, W), the source being floor(i * h / H)."""
    if shape == (2 * x.shape[1], 2 * x.shape[2]):
        return _doubled(x)
    rows = jnp.arange(shape[0]) * x.shape[1] // shape[0]
    columns = jnp.arange(shape[1]) * x.shape[2] // shape[1]
    return x[:, rows][:, :, columns]


def _repeated(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _broadcast(x):
    """As one copy: of two repetitions, an accelerator would write the first to memory."""
    batch, height, width, channels = x.shape
    four = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return four.reshape(batch, 2 * height, 2 * width, channels)


@jax.custom_vjp
def _doubled(x):
    return jax.lax.platform_dependent(x, cpu=_repeated, default=_broadcast)


def _doubled_backward(_, gradient):
    batch, height, width, channels = gradient.shape
    small = jax.ShapeDtypeStruct((batch, height // 2, width // 2, channels), gradient.dtype)
    transposed = lambda gradient: jax.linear_transpose(_repeated, small)(gradient)[0]
    return (jax.lax.platform_dependent(gradient, cpu=transposed, default=sums_of_four),)


_doubled.defvjp(lambda x: (_doubled(x), None), _doubled_backward)


def sums_of_four(x: Float[Array, "B _ _ C"]) -> Float[Array, "B H W C"]:
    """Sums of each 2 x 2 cells in one pass: for sums along axes of two, a TPU would move the whole map."""
    corner = lambda row, column: x[:, row::2, column::2].astype(jnp.float32)
    return (corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)).astype(x.dtype)
