"""Deformable convolution v1 by gathers."""
import jax
import jax.numpy as jnp

from htd_jax.ops.deform_rows import sum_of_taps


def batch_deform_conv(x, offsets, kernel, stride=1, padding=1, dilation=1, groups=1):
    """`deform_conv` of every image of `x [B, H, W, in]` by its `offsets [B, Ho, Wo, 2 * kh * kw]`."""
    where = (stride, padding, dilation)
    by_image = lambda x, offsets, kernel: jax.vmap(
        lambda x, offsets: deform_conv(x, offsets, kernel, *where, groups))(x, offsets)
    by_rows = lambda x, offsets, kernel: deform_conv_by_rows(x, offsets, kernel, *where)
    return jax.lax.platform_dependent(x, offsets, kernel, cpu=by_image, default=by_rows)


def deform_conv_by_rows(x, offsets, kernel, stride=1, padding=1, dilation=1):
    """`batch_deform_conv` for accelerators; see `deform_rows`."""
    batch, height, width, _ = x.shape
    kh, kw, in_per_group, out = kernel.shape
    place = lambda offsets: _corners_of(offsets, (height, width), (kh, kw), stride, padding, dilation)
    index, weights = jax.vmap(place)(offsets)
    index += (jnp.arange(batch) * ((height + 1) * (width + 1)))[:, None, None, None]
    kernel = kernel.reshape(kh * kw, in_per_group, out)
    weights = tuple(weight.ravel() for weight in weights)
    return sum_of_taps(x, index.ravel(), weights, kernel).reshape(*offsets.shape[:3], out)


def deform_conv(x, offsets, kernel, stride=1, padding=1, dilation=1, groups=1):
    """Convolution `[Ho, Wo, out]` of `x [H, W, in]` whose taps are moved by `offsets [Ho, Wo, 2 * kh * kw]`.

    `kernel [kh, kw, in / groups, out]`. Offset channel 2t is dy and 2t + 1 dx of tap t (row-major), in cells. A tap
    reads bilinearly at `h * stride - padding + kh * dilation + dy`; corners outside the map contribute 0.
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
    channels = x.shape[-1]
    index, weights = _corners_of(offsets, x.shape[:2], taps, stride, padding, dilation)
    corners = _neighbourhoods(x)[index].reshape(*index.shape, 4, channels)
    return jnp.einsum("hwtkc,hwtk->hwtc", corners, jnp.stack(weights, axis=-1).astype(x.dtype))


def _corners_of(offsets, shape, taps, stride, padding, dilation):
    """Where each tap's neighbourhood is, `[Ho, Wo, taps]`, and its four corners' weights, as much each."""
    height, width = shape
    positions = _positions(offsets.astype(jnp.float32), taps, stride, padding, dilation)
    y, x = positions[..., 0], positions[..., 1]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    floor_y, floor_x = jnp.floor(y), jnp.floor(x)
    dy, dx = y - floor_y, x - floor_x
    weights = (1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx
    row = jnp.clip(floor_y.astype(jnp.int32) + 1, 0, height) * (width + 1)
    column = jnp.clip(floor_x.astype(jnp.int32) + 1, 0, width)
    return row + column, tuple(jnp.where(inside, weight, 0) for weight in weights)


def _positions(offsets, taps, stride, padding, dilation):
    """Sampling positions `[Ho, Wo, taps, 2]` (y, x) in cells of the input."""
    rows, columns, _ = offsets.shape
    kh, kw = taps
    tap = jnp.arange(kh * kw)[None, None, :]
    y = (jnp.arange(rows) * stride - padding)[:, None, None] + (tap // kw) * dilation
    x = (jnp.arange(columns) * stride - padding)[None, :, None] + (tap % kw) * dilation
    grid = jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)
    return grid + offsets.reshape(rows, columns, kh * kw, 2)


def _neighbourhoods(x):
    """Every 2 x 2 neighbourhood of `x [H, W, C]` framed by zeros, as rows `[(H+1) * (W+1), 4 * C]`.

    One gather of four times the width serves for the four corners, and the frame supplies their zeros.
    """
    framed = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    corners = [framed[:-1, :-1], framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]]
    return jnp.concatenate(corners, axis=-1).reshape(-1, 4 * x.shape[-1])
