"""Convolution whose gradient a CPU computes fast."""
import functools

import jax
import jax.numpy as jnp

LARGE = 10_000  # cells of a map


def conv(x, kernel, strides, padding, *, feature_group_count, lhs_dilation, rhs_dilation, **more):
    """`lax.conv_general_dilated` of NHWC and HWIO, as `nnx.Conv` calls it.

    XLA's own gradient of the kernel takes a CPU up to 20 times as long as the forward pass; as matrix products, one for
    each tap, it takes about as long. Accelerators compute what they would without this.
    """
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding,
                              feature_group_count=feature_group_count, lhs_dilation=lhs_dilation,
                              rhs_dilation=rhs_dilation, **more)
    if feature_group_count > 1 or {*lhs_dilation, *rhs_dilation} != {1}:
        return plain(x, kernel)
    return _conv(plain, tuple(strides), tuple(padding), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(plain, strides, padding, x, kernel):
    return plain(x, kernel)


def _forward(plain, strides, padding, x, kernel):
    return plain(x, kernel), (x, kernel)


def _backward(plain, strides, padding, inputs, gradient):
    of_x = lambda x, kernel, g: jax.linear_transpose(lambda x: plain(x, kernel), x)(g)[0]
    of_kernel = lambda x, kernel, g: jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(g)[0]

    def on_cpu(x, kernel, g):
        found = _by_image(x, g, kernel.shape[:2], strides, padding)
        g, found = jax.lax.optimization_barrier((g, found))  # x is let go of before its gradient is there
        return of_x(x, kernel, g), found

    return jax.lax.platform_dependent(*inputs, gradient, cpu=on_cpu,
                                      default=lambda *inputs: (of_x(*inputs), of_kernel(*inputs)))


_conv.defvjp(_forward, _backward)


def _by_image(x, gradient, taps, *where):
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
