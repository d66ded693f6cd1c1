"""The gradient of a convolution's kernel on a CPU, as matrix products."""
import jax
import jax.numpy as jnp

LARGE = 10_000  # cells of a map


def gradient_by_image(x, gradient, taps, *where):
    """`kernel_gradient`, image by image where maps are large: its copies of them are as large as itself."""
    if taps == (1, 1) or x.shape[1] * x.shape[2] < LARGE:
        return kernel_gradient(x, gradient, taps, *where)
    add = lambda total, i: (total + kernel_gradient(x[i][None], gradient[i][None], taps, *where), None)
    zeros = jnp.zeros((*taps, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.lax.scan(add, zeros, jnp.arange(len(x)))[0]


def kernel_gradient(x, gradient, taps, strides, padding):
    """Gradient `[kh, kw, in, out]` of the kernel of a convolution of `x [B, H, W, in]`, as one product a tap.

    `gradient [B, Ho, Wo, out]`: of the result; `taps` (kh, kw); `padding` ((top, bottom), (left, right)).
    """
    rows, columns = gradient.shape[1:3]
    spans = strides[0] * (rows - 1) + 1, strides[1] * (columns - 1) + 1
    framed = jnp.pad(x, ((0, 0), *padding, (0, 0)))

    def of_tap(tap):  # one at a time: what they see of `framed` are copies as large as itself
        seen = jax.lax.dynamic_slice(framed, (0, *tap, 0), (len(x), *spans, x.shape[-1]))
        return _rows(seen[:, ::strides[0], ::strides[1]]).T @ _rows(gradient)

    products = jax.lax.map(of_tap, tuple(map(jnp.ravel, jnp.indices(taps))))
    return products.reshape(*taps, x.shape[-1], gradient.shape[-1])


def _rows(x):
    """A matrix with a row for each place: only so does XLA transpose it within the product, not in a copy."""
    return x.reshape(-1, x.shape[-1])
