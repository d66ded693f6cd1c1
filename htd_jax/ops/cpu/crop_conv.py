"""3x3 convolution of RoI crops on a CPU, where matrix products take half the time of a convolution of so small maps.

They are Winograd's F(2, 3): two outputs side by side need four products instead of six. Its factors are 1 and 1/2, so
that rounding stays that of the plain sum; more outputs at a time save more but round worse: F(4 x 4, 3 x 3) loses a
digit. Along the columns alone it is half the work where the kernel is new each time, as in training; along both axes
it is a third of the work but for the factors it makes of the kernel, which `prepared` makes once for many crops.
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from htd_jax.ops.cpu.conv import kernel_gradient

Factors = Sequence[Sequence[Float[Array, "_ _"]]]


@jax.custom_vjp
def crop_conv(x: Float[Array, "N H W I"], kernel: Float[Array, "3 3 I O"]) -> Float[Array, "N H W O"]:
    """Convolution of crops, W odd, with one zero on each side."""
    return _pairs(x, _factors(jnp.moveaxis(kernel.astype(x.dtype), 1, 0)), 2, _along_rows)


def crop_conv_prepared(x: Float[Array, "N H W I"], factors: Factors) -> Float[Array, "N H W O"]:
    """The same, H odd too, from `factors = prepared(kernel)`."""
    return _pairs(x, factors, 2, lambda x, column: _pairs(x, column, 1, jnp.matmul))


def prepared(kernel: Float[Array, "3 3 I O"]) -> Factors:
    """What `crop_conv_prepared` multiplies by in place of the kernel: five factors of columns, each of five of rows."""
    return [_factors(column) for column in _factors(jnp.moveaxis(kernel, 1, 0))]


def _factors(taps):
    """The factors of `_pairs` from three taps `[..., in, out]`: four of a pair of outputs, and one of the last."""
    left, centre, right = taps
    ends = jnp.concatenate([left, centre], axis=-2)
    return [left, (left + centre + right) / 2, (left - centre + right) / 2, right, ends]


def _pairs(x, factors, axis, product):
    """Convolution along an `axis` of odd length, in pairs of outputs, by five calls of `product`."""
    framed = jnp.pad(x, [(int(k == axis), 0) for k in range(x.ndim)])
    end = x.shape[axis] - 2
    a, b, c, d = (jax.lax.slice_in_dim(framed, k, end + k, 2, axis) for k in range(4))  # inputs of a pair of outputs
    m1, m2, m3, m4 = map(product, (a - c, b + c, c - b, b - d), factors)
    pairs = jnp.stack([m1 + m2 + m3, m2 - m3 - m4], axis=axis + 1)
    shape = *m1.shape[:axis], -1, *m1.shape[axis + 1:]
    last = jnp.split(jax.lax.slice_in_dim(x, end, end + 2, 1, axis), 2, axis)  # the odd output has two inputs
    last = product(jnp.concatenate(last, axis=-1), factors[-1])
    return jnp.concatenate([pairs.reshape(shape), last], axis)


def _along_rows(x, kernel):
    """Convolution along axis 1 by `kernel [3, in, out]`, as one product."""
    framed = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    seen = jnp.concatenate([framed[:, k:k + x.shape[1]] for k in range(3)], axis=-1)
    return seen @ kernel.reshape(-1, kernel.shape[-1])


def _backward(inputs, gradient):
    """The input's gradient is the same convolution turned around."""
    x, kernel = inputs
    of_kernel = kernel_gradient(x, gradient, kernel.shape[:2], strides=(1, 1), padding=((1, 1), (1, 1)))
    return crop_conv(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3)), of_kernel.astype(kernel.dtype)


crop_conv.defvjp(lambda x, kernel: (crop_conv(x, kernel), (x, kernel)), _backward)
