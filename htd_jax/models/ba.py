"""BA, border-aware adaptation: stage 1's regression branch."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from htd_jax.models.layers import KAIMING_FAN_OUT, conv, linear, normal, uniform_fan_in
from htd_jax.ops.cpu.crop_conv import Factors, crop_conv, crop_conv_prepared, prepared
from htd_jax.ops.crop_products import BINS

STDS = (0.05, 0.05, 0.1, 0.1)
ATTENTION = 128
RING = np.pad(np.zeros((BINS - 2, BINS - 2), np.float32), 1, constant_values=1)  # the outermost bins of a crop


class ConvGN(nnx.Module):
    """3x3 convolution without bias, group norm where `groups`, ReLU."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs) -> None:
        self.conv = conv(inputs, outputs, 3, bias=False, init=KAIMING_FAN_OUT, dtype=dtype, rngs=rngs)
        self.gn = nnx.GroupNorm(outputs, groups, epsilon=1e-5, dtype=dtype, rngs=rngs) if groups else None

    def __call__(self, x: Float[Array, "N 7 7 I"], factors: Factors | None = None) -> Float[Array, "N 7 7 O"]:
        on_cpu = crop_conv if factors is None else lambda x, _: crop_conv_prepared(x, factors)
        x = jax.lax.platform_dependent(x, self.conv.kernel[...], cpu=on_cpu, default=lambda x, _: self.conv(x))
        return jax.nn.relu(x if self.gn is None else self.gn(x))


class BA(nnx.Module):
    """Attention over the four levels' crops, the P2 crop's border, four 3x3 convolutions, 4 class-agnostic deltas."""

    def __init__(self, channels: int, hidden: int, outputs: int, groups: int, *, dtype: DTypeLike | None = None,
                 rngs: nnx.Rngs) -> None:
        make = dict(dtype=dtype, rngs=rngs)
        torch_init = lambda fan_in: dict(init=uniform_fan_in(fan_in), bias_init=uniform_fan_in(fan_in))
        self.att_conv1 = conv(channels, ATTENTION, 1, **torch_init(channels), **make)
        self.att_conv2 = conv(ATTENTION, 1, 1, **torch_init(ATTENTION), **make)
        widths = (channels, hidden, hidden, hidden, outputs)
        self.convs = nnx.List([ConvGN(i, o, groups if k < 3 else 0, **make)
                               for k, (i, o) in enumerate(zip(widths, widths[1:]))])
        self.fc_reg = linear(outputs, 4, init=normal(0.001), **make)

    def __call__(self, crops: Float[Array, "4 N 7 7 C"], own: Float[Array, "N 7 7 C"], context: Float[Array, "N C"],
                 prepared: Sequence[Factors | None] = (None,) * 4) -> Float[Array, "N 4"]:
        """Float32 deltas from the crops of all levels and of the RoI's own, and the context of its image.

        `prepared`: of `prepare()`, where more than one call follows; with it a CPU is faster. It has no gradient.
        """
        x = self.aggregate(crops) + own + context[:, None, None, :]
        for layer, factors in zip(self.convs, prepared):
            x = layer(x, factors)
        return self.fc_reg(x.mean(axis=(1, 2))).astype(jnp.float32)

    def prepare(self) -> list[Factors]:
        """What a CPU makes of the 3x3 kernels before it uses them."""
        return [prepared(layer.conv.kernel[...].astype(layer.conv.dtype or jnp.float32)) for layer in self.convs]

    def attention_logits(self, crops: Float[Array, "4 N 7 7 C"]) -> Float[Array, "4 N"]:
        """One logit for each level and RoI."""
        pooled = crops.mean(axis=(2, 3), keepdims=True)
        pooled = pooled.reshape(-1, 1, 1, pooled.shape[-1])
        return self.att_conv2(jnp.tanh(self.att_conv1(pooled))).reshape(crops.shape[:2])

    def aggregate(self, crops: Float[Array, "4 N 7 7 C"]) -> Float[Array, "N 7 7 C"]:
        """Levels weighted by attention, plus the outermost ring of bins of the P2 crop."""
        weights = jax.nn.softmax(self.attention_logits(crops).astype(jnp.float32), axis=0).astype(crops.dtype)
        return jnp.einsum("ln,lnhwc->nhwc", weights, crops) + crops[0] * RING[None, :, :, None].astype(crops.dtype)

