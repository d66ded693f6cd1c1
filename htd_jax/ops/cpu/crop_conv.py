"""3x3 convolution of RoI crops on a CPU, where matrix products are about twice as fast as a convolution of such small maps.

They are Winograd's F(2, 3): two outputs side by side need four products instead of six. Its factors are 1 and 1/2, so
that rounding stays that of the plain sum; more outputs at a time save more but round worse: F(4 x 4, 3 x 3) loses a
digit. Along the columns alone it is half the work where the kernel is new each time, as in training; along both axes
it is a third of the work but for what it makes of the kernel, which `prepared` does once for many crops.
"""
import jax
import jax.numpy as jnp

from htd_jax.ops.cpu.conv import kernel_gradient


@jax.custom_vjp
def crop_conv(x, kernel):
    """Convolution `[N, H, W, out]` of crops `x [N, H, W, in]`, W odd, by `kernel [3, 3, in, out]`; one zero on each side."""
    return _pairs(x, _kinds(jnp.moveaxis(kernel.astype(x.dtype), 1, 0)), 2, _along_rows)


def crop_conv_prepared(x, kinds):
    """The same, H odd too, from `kinds = prepared(kernel)`."""
    return _pairs(x, kinds, 2, lambda x, kinds: _pairs(x, kinds, 1, jnp.matmul))


def prepared(kernel):
    """What `crop_conv_prepared` multiplies by in place of `kernel [3, 3, in, out]`: for each kind of column five of rows."""
    return [_kinds(column) for column in _kinds(jnp.moveaxis(kernel, 1, 0))]


def _kinds(taps):
    """The factors of `_pairs` from three taps `[..., in, out]`: four of a pair of outputs, and one of the last output."""
    left, centre, right = taps
    return [left, (left + centre + right) / 2, (left - centre + right) / 2, right, jnp.concatenate([left, centre], axis=-2)]


def _pairs(x, kinds, axis, product):
    """Convolution along an `axis` of odd length of `x [N, H, W, in]`, in pairs of outputs: by five calls of `product`."""
    framed = jnp.pad(x, [(int(k == axis), 0) for k in range(x.ndim)])
    end = x.shape[axis] - 2
    a, b, c, d = (jax.lax.slice_in_dim(framed, k, end + k, 2, axis) for k in range(4))  # what a pair of outputs sees
    one, two, three, four = map(product, (a - c, b + c, c - b, b - d), kinds)
    pairs = jnp.stack([one + two + three, two - three - four], axis=axis + 1)
    shape = *one.shape[:axis], -1, *one.shape[axis + 1:]
    last = jnp.split(jax.lax.slice_in_dim(x, end, end + 2, 1, axis), 2, axis)  # the odd output, which sees two
    last = product(jnp.concatenate(last, axis=-1), kinds[-1])
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
