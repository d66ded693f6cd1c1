"""Convolution whose gradient a CPU computes fast."""
import functools

import jax

from htd_jax.ops.cpu.conv import gradient_by_image


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
        found = gradient_by_image(x, g, kernel.shape[:2], strides, padding)
        g, found = jax.lax.optimization_barrier((g, found))  # x is let go of before its gradient is there
        return of_x(x, kernel, g), found

    return jax.lax.platform_dependent(*inputs, gradient, cpu=on_cpu,
                                      default=lambda *inputs: (of_x(*inputs), of_kernel(*inputs)))


_conv.defvjp(_forward, _backward)
