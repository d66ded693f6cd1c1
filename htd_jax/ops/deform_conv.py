"""Deformable convolution v1 by gathers."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def deform_conv(x: Float[Array, "H W I"], offsets: Float[Array, "Ho Wo _"], kernel: Float[Array, "kh kw _ O"],
                stride: int = 1, padding: int = 1, dilation: int = 1, groups: int = 1) -> Float[Array, "Ho Wo O"]:
    """Convolution whose taps `offsets` move: channel 2t by dy and 2t + 1 by dx of tap t (row-major), in cells.

    A tap reads bilinearly at `h * stride - padding + kh * dilation + dy`; corners outside the map contribute 0.
    """
    kh, kw, in_per_group, out = kernel.shape
    patches = jax.checkpoint(_patches, static_argnums=(2, 3, 4, 5))(x, offsets, (kh, kw), stride, padding, dilation)
    if groups == 1:
        return jnp.einsum("hwtc,tco->hwo", patches, kernel.reshape(kh * kw, in_per_group, out))
    patches = patches.reshape(*patches.shape[:3], groups, in_per_group)
    kernel = kernel.reshape(kh * kw, in_per_group, groups, out // groups)
    return jnp.einsum("hwtgc,tcgo->hwgo", patches, kernel).reshape(*patches.shape[:2], out)


def _patches(x, offsets, taps, stride, padding, dilation):
    """Bilinear samples `[Ho, Wo, taps, C]`. Recomputed in the backward pass: kept, they would fill the memory."""
    height, width, channels = x.shape
    positions = _positions(offsets.astype(jnp.float32), taps, stride, padding, dilation)
    y, x_position = positions[..., 0], positions[..., 1]
    inside = (y > -1) & (y < height) & (x_position > -1) & (x_position < width)
    floor_y, floor_x = jnp.floor(y), jnp.floor(x_position)
    dy, dx = y - floor_y, x_position - floor_x
    corner_weights = jnp.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx], axis=-1)
    corner_weights = jnp.where(inside[..., None], corner_weights, 0).astype(x.dtype)
    row = jnp.clip(floor_y.astype(jnp.int32) + 1, 0, height) * (width + 1)
    column = jnp.clip(floor_x.astype(jnp.int32) + 1, 0, width)
    corners = _neighbourhoods(x)[row + column].reshape(*y.shape, 4, channels)
    return jnp.einsum("hwtkc,hwtk->hwtc", corners, corner_weights)


def _positions(offsets, taps, stride, padding, dilation):
    """Sampling positions `[Ho, Wo, taps, 2]` (y, x) in cells of the input."""
    rows, columns, _ = offsets.shape
    kh, kw = taps
    tap = jnp.arange(kh * kw)[None, None, :]
    y = (jnp.arange(rows) * stride - padding)[:, None, None] + tap // kw * dilation
    x = (jnp.arange(columns) * stride - padding)[None, :, None] + tap % kw * dilation
    grid = jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)
    return grid + offsets.reshape(rows, columns, kh * kw, 2)


def _neighbourhoods(x):
    """Every 2 x 2 neighbourhood of `x [H, W, C]` framed by zeros, as rows `[(H+1) * (W+1), 4 * C]`.

    One gather of four times the width serves for the four corners, and the frame supplies their zeros.
    """
    framed = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    corners = [framed[:-1, :-1], framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]]
    return jnp.concatenate(corners, axis=-1).reshape(-1, 4 * x.shape[-1])
