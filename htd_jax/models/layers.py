"""Layers shared by the modules: convolution that pads as PyTorch does, and batch norm that never learns statistics."""
import jax
import jax.numpy as jnp
from flax import nnx

from htd_jax.ops.conv import conv as fast_gradient_conv

KAIMING_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
XAVIER = nnx.initializers.xavier_uniform()


def normal(std):
    """Initialiser: normal with standard deviation `std`."""
    return nnx.initializers.normal(std)


def uniform_fan_in(fan_in):
    """PyTorch's default for weights and biases of a layer with `fan_in` inputs: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Statistic(nnx.Variable):
    """A running mean or variance: loaded from checkpoints, never trained."""


def conv(inputs, outputs, size, *, rngs, dtype, stride=1, groups=1, bias=True, init=XAVIER, bias_init=nnx.initializers.zeros):
    """`nnx.Conv` with (size - 1) / 2 zeros on *each* side, strided or not: `SAME` would pad strided ones on one side."""
    pad = (size - 1) // 2
    return nnx.Conv(inputs, outputs, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), use_bias=bias,
                    feature_group_count=groups, kernel_init=init, bias_init=bias_init, dtype=dtype,
                    conv_general_dilated=fast_gradient_conv, rngs=rngs)


def linear(inputs, outputs, *, rngs, dtype, init=XAVIER):
    """`nnx.Linear` with the initialiser named and zero bias."""
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)


def clear_padding(x, padded, stride):
    """`x [B, H, W, C]`, `stride` pixels a cell, with zeros in the cells that lie beyond `padded [B, 2]` (h, w in pixels).

    Before every 3x3 convolution, this makes a map with more padding give what one that ends at `padded` gives: there,
    the convolution finds its own zeros. `padded` None: the map ends where it should.
    """
    if padded is None:
        return x
    rows = jnp.arange(x.shape[1]) * stride < padded[:, :1]
    columns = jnp.arange(x.shape[2]) * stride < padded[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


class FrozenBatchNorm(nnx.Module):
    """Batch norm in inference mode (eps 1e-5) with trainable scale and bias, as the original trains."""

    def __init__(self, channels, *, scale_init=nnx.initializers.ones, dtype=None, rngs):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = Statistic(jnp.zeros(channels))
        self.var = Statistic(jnp.ones(channels))
        self.dtype = dtype

    def __call__(self, x):
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
        offset = self.bias[...] - self.mean[...] * factor
        return x * factor.astype(x.dtype) + offset.astype(x.dtype)


def norm(kind, channels, *, rngs, dtype, zero=False):
    """The norm of a backbone: `frozen_bn` (the original) or `gn` (32 groups; training from scratch)."""
    scale_init = nnx.initializers.zeros if zero else nnx.initializers.ones
    if kind == "frozen_bn":
        return FrozenBatchNorm(channels, scale_init=scale_init, dtype=dtype, rngs=rngs)
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and channels >= 2 * g or g == 1)
    return nnx.GroupNorm(channels, groups, epsilon=1e-5, scale_init=scale_init, dtype=dtype, rngs=rngs)
