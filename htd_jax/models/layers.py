"""Layers shared by the modules: convolution that pads as PyTorch does, and batch norm that never learns statistics."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.conv import conv as fast_gradient_conv

KAIMING_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
XAVIER = nnx.initializers.xavier_uniform()


def normal(std: float) -> Initializer:
    """Initialiser: normal with standard deviation `std`."""
    return nnx.initializers.normal(std)


def uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default for weights and biases of a layer with `fan_in` inputs: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Statistic(nnx.Variable):
    """A running mean or variance: loaded from checkpoints, never trained."""


class Conv(nnx.Conv):
    """`nnx.Conv` whose outputs can be multiplied by a factor each, in the kernel; its bias is added by `shifted`."""

    def __call__(self, x: Float[Array, "B _ _ I"], factor: Float[Array, "O"] | None = None) -> Float[Array, "B _ _ O"]:
        x = x.astype(self.dtype or x.dtype)
        kernel = multiplied(self.kernel[...], factor).astype(x.dtype)
        x = self.conv_general_dilated(
            x, kernel, self.strides, self.padding, feature_group_count=self.feature_group_count,
            lhs_dilation=(1, 1), rhs_dilation=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x if self.bias is None else shifted(x, self.bias[...])


def multiplied(kernel: Float[Array, "kh kw _ O"], factor: Float[Array, "O"] | None) -> Float[Array, "kh kw _ O"]:
    """A kernel whose outputs are multiplied by `factor`, if there is one."""
    return kernel if factor is None else kernel * factor[None, None, None]


def shifted(x: Float[Array, "B H W C"], offset: Float[Array, "C"]) -> Float[Array, "B H W C"]:
    """`x + offset` in the dtype of `x`, but added in float32: so the gradient of a float32 `offset` is summed as such.

    Sums in bfloat16 lose small terms, and take a TPU twice as long.
    """
    return (x + offset[None, None, None]).astype(x.dtype)


def conv(inputs: int, outputs: int, size: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None, stride: int = 1,
         groups: int = 1, bias: bool = True, init: Initializer = XAVIER,
         bias_init: Initializer = nnx.initializers.zeros, operator: Callable = fast_gradient_conv) -> Conv:
    """`Conv` with (size - 1) / 2 zeros on *each* side, where `SAME` pads strided ones on one side only."""
    pad = (size - 1) // 2
    return Conv(inputs, outputs, (size, size), strides=(stride, stride), padding=((pad, pad), (pad, pad)),
                use_bias=bias, feature_group_count=groups, kernel_init=init, bias_init=bias_init, dtype=dtype,
                conv_general_dilated=operator, rngs=rngs)


def linear(inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None,
           init: Initializer = XAVIER) -> nnx.Linear:
    """`nnx.Linear` with the initialiser named and zero bias."""
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)


def crop_linear(layer: nnx.Linear, crops: Float[Array, "B N 7 7 C"]) -> Float[Array, "B N O"]:
    """`layer` on crops as vectors, in the order y, x, channel."""
    flat = lambda crops: layer(crops.reshape(*crops.shape[:2], -1))
    return jax.lax.platform_dependent(crops, tpu=lambda crops: crop_linear_by_bins(layer, crops), default=flat)


def crop_linear_by_bins(layer: nnx.Linear, crops: Float[Array, "B N 7 7 C"]) -> Float[Array, "B N O"]:
    """As a product over three axes: to make one of them, a TPU would move all crops."""
    kernel, bias = (value[...].astype(layer.dtype or crops.dtype) for value in (layer.kernel, layer.bias))
    return jnp.einsum("bnpqc,pqco->bno", crops, kernel.reshape(*crops.shape[2:], -1)) + bias[None, None]


@jax.custom_jvp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`jax.nn.relu`, whose gradient asks the result what was above 0: so the input need not be kept beside it."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_tangent(inputs, tangents):
    y = relu(*inputs)
    return y, jnp.where(y != 0, *tangents, 0)  # of y > 0 XLA would make x > 0, and keep x


def clear_padding(x: Float[Array, "B H W C"], padded: Int[Array, "B 2"] | None, stride: int) -> Float[Array, "B H W C"]:
    """A map of `stride` pixels a cell with zeros in the cells beyond `padded`.

    Before every 3x3 convolution, this makes a map with more padding give what one that ends at `padded` gives: there,
    the convolution finds its own zeros.
    """
    return x if padded is None else jnp.where(inside(x.shape[1:3], padded, stride), x, 0)


def inside(shape: tuple[int, int], size: Int[Array, "B 2"], stride: int = 1) -> Bool[Array, "B H W 1"]:
    """Whether each cell of a map of `shape` (h, w) begins within `size`."""
    rows, columns = (jnp.arange(count)[None] * stride < end[:, None] for count, end in zip(shape, size.T))
    return rows[:, :, None, None] & columns[:, None, :, None]


class FrozenBatchNorm(nnx.Module):
    """Batch norm in inference mode (eps 1e-5) with trainable scale and bias, as the original trains."""

    def __init__(self, channels: int, *, scale_init: Initializer = nnx.initializers.ones, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = Statistic(jnp.zeros(channels, jnp.float32))
        self.var = Statistic(jnp.ones(channels, jnp.float32))

    def line(self) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
        """Factor and offset: the norm of x is `x * factor + offset`."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
        return factor, self.bias[...] - self.mean[...] * factor


def conv_norm(convolve: Callable, norm: nnx.Module, x: Float[Array, "B _ _ I"]) -> Float[Array, "B _ _ O"]:
    """The `norm` of `convolve(x)`."""
    if not isinstance(norm, FrozenBatchNorm):
        return norm(convolve(x))
    return jax.lax.platform_dependent(x, cpu=lambda x: norm_of_map(convolve, norm, x),
                                      default=lambda x: norm_in_kernel(convolve, norm, x))


def norm_of_map(convolve: Callable, norm: FrozenBatchNorm, x: Float[Array, "B _ _ I"]) -> Float[Array, "B _ _ O"]:
    """After the convolution, as in the original. Rounding matters to deformable offsets: their gradients jump where a
    sample crosses a cell's edge."""
    factor, offset = norm.line()
    y = convolve(x)
    return (y * factor[None, None, None] + offset[None, None, None]).astype(y.dtype)


def norm_in_kernel(convolve: Callable, norm: FrozenBatchNorm, x: Float[Array, "B _ _ I"]) -> Float[Array, "B _ _ O"]:
    """By `convolve(x, factor)`: the map between the two is never written nor kept, and the factor's gradient is a sum
    over the kernel in place of one over the map."""
    factor, offset = norm.line()
    return shifted(convolve(x, factor), offset)


def norm(kind: str, channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike | None, zero: bool = False) -> nnx.Module:
    """The norm of a backbone: `frozen_bn` (the original) or `gn` (32 groups; training from scratch)."""
    scale_init = nnx.initializers.zeros if zero else nnx.initializers.ones
    if kind == "frozen_bn":
        return FrozenBatchNorm(channels, scale_init=scale_init, rngs=rngs)
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and channels >= 2 * g or g == 1)
    return nnx.GroupNorm(channels, groups, epsilon=1e-5, scale_init=scale_init, dtype=dtype, rngs=rngs)
