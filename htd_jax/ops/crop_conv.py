"""3x3 convolution of RoI crops on a CPU, where matrix products are about twice as fast as a convolution of such small maps.

Along the columns it is Winograd's F(2, 3): two outputs side by side need four products instead of six. Its factors are
1 and 1/2, so that rounding stays that of the plain sum. (Both axes at once, or more outputs at a time, save more and
round worse: F(4 x 4, 3 x 3) loses a digit.)
"""
import jax
import jax.numpy as jnp

from htd_jax.ops.conv import kernel_gradient


@jax.custom_vjp
def crop_conv(x, kernel):
    """Convolution `[N, H, W, out]` of crops `x [N, H, W, in]`, W odd, by `kernel [3, 3, in, out]`; one zero on each side."""
    left, centre, right = jnp.moveaxis(kernel.astype(x.dtype), 1, 0)
    framed = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))
    a, b, c, d = (framed[:, :, k:x.shape[2] - 2 + k:2] for k in range(4))  # the four columns that a pair of outputs sees
    one = _along_rows(a - c, left)
    two = _along_rows(b + c, (left + centre + right) / 2)
    three = _along_rows(c - b, (left - centre + right) / 2)
    four = _along_rows(b - d, right)
    pairs = jnp.stack([one + two + three, two - three - four], axis=3)
    last = jnp.concatenate([x[:, :, -2:-1], x[:, :, -1:]], axis=-1)  # the odd column out, which sees two columns
    last = _along_rows(last, jnp.concatenate([left, centre], axis=1))
    return jnp.concatenate([pairs.reshape(*x.shape[:2], -1, last.shape[-1]), last], axis=2)


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
