"""Deformable convolution for accelerators: all images of a batch as one list of taps, each a row of a matrix.

An index costs an accelerator the same whether it moves one cell or four, so that each tap takes its four corners as one
row of `neighbourhoods`. Their weighted sum is made of slices of that row: a product over the four would go to the
matrix unit, and as an axis they would be padded to eight. The rows' gradients are added up in float32, by rising index:
XLA sorts them anyhow, and before they are made there are four times fewer numbers to move.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CORNERS = 4


@jax.custom_vjp
def sum_of_taps(x: Float[Array, "B H W I"], index: Int[Array, "T"], weights: tuple[Float[Array, "T"], ...],
                kernel: Float[Array, "taps _ O"]) -> Float[Array, "places O"]:
    """What the kernel makes of the taps of each place, T in all.

    `index`: each tap's row of `neighbourhoods(x)`; `weights`: of its four corners, float32.
    """
    return _product(_weighted(_rows(x, index), weights), kernel)


def _forward(x, index, weights, kernel):
    return sum_of_taps(x, index, weights, kernel), (x, index, weights, kernel)


def _backward(inputs, gradient):
    """Nothing but the inputs is kept: the taps are several times as large as the map."""
    x, index, weights, kernel = inputs
    rows = _rows(x, index)
    _, transpose = jax.vjp(_product, _weighted(rows, weights), kernel)
    of_taps, of_kernel = transpose(gradient)
    of_weights = tuple(_sum_of_products(corner, of_taps) for corner in _corners(rows))
    return _gradient_of_map(x, index, weights, of_taps), None, of_weights, of_kernel


sum_of_taps.defvjp(_forward, _backward)


def neighbourhoods(x: Float[Array, "B H W C"]) -> Float[Array, "_ _"]:
    """Every 2 x 2 neighbourhood of `x` framed by zeros, as rows `[B * (H + 1) * (W + 1), 4 * C]`.

    A frame of one row above and one column on the left is enough: where a map ends, the next row or image begins.
    """
    framed = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    flat = framed.reshape(-1, x.shape[-1])
    behind = jnp.pad(flat, ((0, _steps(x)[-1]), (0, 0)))
    return jnp.concatenate([behind[step:step + len(flat)] for step in _steps(x)], axis=1)


def _steps(x):
    """How many rows of the framed map lie between a neighbourhood's first corner and each of the four."""
    width = x.shape[2] + 1
    return 0, 1, width, width + 1


def _gradient_of_map(x, index, weights, gradient):
    """The gradient of `x [B, H, W, C]` from that of the taps, `[T, C]`."""
    index, order = jax.lax.sort_key_val(index, jnp.arange(len(index), dtype=jnp.int32))
    rows = gradient, jnp.stack(weights, axis=1)  # a row of four weights costs a gather what one of them does
    gradient, weights = (jnp.take(part, order, axis=0, mode="clip") for part in rows)
    parts = [gradient.astype(jnp.float32) * weight for weight in jnp.split(weights, CORNERS, axis=1)]
    batch, height, width, channels = x.shape
    flat = jnp.zeros((batch * (height + 1) * (width + 1), CORNERS * channels), jnp.float32)
    flat = flat.at[index].add(jnp.concatenate(parts, axis=1), mode="drop", indices_are_sorted=True)
    total = sum(jnp.pad(corner, ((step, 0), (0, 0)))[:len(flat)] for step, corner in zip(_steps(x), _corners(flat)))
    return total.reshape(batch, height + 1, width + 1, channels)[:, 1:, 1:].astype(x.dtype)


def _rows(x, index):
    return jnp.take(neighbourhoods(x), index, axis=0, mode="clip")


def _corners(rows):
    """The four corners `[T, C]` of `rows [T, 4 * C]`."""
    return jnp.split(rows, CORNERS, axis=1)


def _weighted(rows, weights):
    """Bilinear samples `[T, C]`."""
    parts = [corner.astype(jnp.float32) * weight[:, None] for corner, weight in zip(_corners(rows), weights)]
    return sum(parts).astype(rows.dtype)


def _sum_of_products(a, b):
    return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(axis=1)


def _product(samples, kernel):
    """`[P, out]` of samples `[P * taps, in]`."""
    taps, in_per_group, out = kernel.shape
    groups = samples.shape[-1] // in_per_group
    if groups == 1:
        return samples.reshape(-1, taps * in_per_group) @ kernel.reshape(-1, out)
    samples = samples.reshape(-1, taps, groups, in_per_group)
    kernel = kernel.reshape(taps, in_per_group, groups, out // groups)
    return jnp.einsum("ptgc,tcgo->pgo", samples, kernel).reshape(-1, out)
