"""RoIAlign: `aligned`, with the adaptive sampling grid of the original (`sampling_ratio = 0`), exactly.

A bin of a RoI averages bilinear samples on a grid of n points an axis, n = ceil(size / 7) in cells of the level, so the
number of samples differs from RoI to RoI. But bilinear weights, grid and border rule all factor by axis: a crop is
`Wy (7 x H) . F (H x W x C) . Wx^T (W x 7)`, and the weights have a closed form for any n. Two matrix products, static
shapes, no gather; backward is the same two products. Coordinates carry no gradient, as in the original.
"""
import jax
import jax.numpy as jnp

from htd_jax.ops import crop_products as products
from htd_jax.ops.cpu import roi_align as cpu
from htd_jax.ops.crop_products import BINS


def axis_weights(start, end, cells):
    """Weights `[N, 7, cells]` of the cells of one axis in each bin's average; `start`, `end` `[N]` in cells.

    Sample i of a bin lies at (i + .5)/n of it. One below -1 or above `cells` counts 0, one between -1 and 0 is moved
    to 0, one beyond the last cell to the last cell. Without size, or a negative one, all weights are 0.
    """
    # Samples are evenly spaced and bilinear weights are linear between two cells, so a bin's total weight on a cell
    # needs only how many of its samples lie between two neighbouring cells, and their mean.
    size = (end - start)[:, None, None]
    bin_size = size / BINS
    n = jnp.maximum(exact_ceil(size, BINS), 0)
    step = jnp.where(n > 0, bin_size / jnp.maximum(n, 1), 1)
    first = start[:, None, None] + jnp.arange(BINS, dtype=start.dtype)[:, None] * bin_size + step / 2
    edges = jnp.arange(-1, cells + 1, dtype=start.dtype)
    below = jnp.clip(jnp.ceil((edges - first) / step), 0, n)  # samples below each integer -1..cells
    in_cell = below[..., 1:] - below[..., :-1]  # samples in [h, h + 1), h = -1..cells-1
    mean = first + step * (below[..., 1:] + below[..., :-1] - 1) / 2
    toward_next = in_cell * jnp.clip(mean - edges[:-1], 0, 1)
    weights = (in_cell - toward_next)[..., 1:] + toward_next[..., :-1]
    weights = weights.at[..., 0].add((in_cell - toward_next)[..., 0])
    at_end = (jnp.clip(jnp.floor((cells - first) / step) + 1, 0, n) - below[..., -1:])[..., 0]
    weights = weights.at[..., -1].add(toward_next[..., -1] + at_end)
    return weights / jnp.maximum(n, 1)


def exact_ceil(value, divisor):
    """ceil(value / divisor). Compiled, the division is a product with 1 / divisor: 42 / 7 would be more than 6."""
    n = jnp.ceil(value / divisor)
    return n - (value <= (n - 1) * divisor) + (value > n * divisor)


def roi_align(features, rois, stride, where=None, form="auto"):
    """Crops `[N, 7, 7, C]` of `features [H, W, C]` at `rois [N, 4]` (pixels), a level of `stride` pixels a cell.

    `where` bool [N]: the other crops are 0. Same dtype as the features; weights are computed in float32. `form`:
    'auto', the device's best, or 'products'.
    """
    height, width, _ = features.shape
    corners = jax.lax.stop_gradient(rois) / stride - 0.5
    wx = axis_weights(corners[:, 0], corners[:, 2], width)
    wy = axis_weights(corners[:, 1], corners[:, 3], height)
    # A RoI without area in one axis pools to 0 because that axis's weights are 0.
    if where is not None:
        wy = jnp.where(where[:, None, None], wy, 0)
    crops = {"auto": _crops, "products": _products}[form]
    return crops(features, wy.astype(features.dtype), wx.astype(features.dtype))


def _linear(forward, backward):
    """`forward(features, wy, wx)` whose gradient of the features is `backward(gradient, wy, wx)`; weights have none."""
    crops = jax.custom_vjp(forward)
    crops.defvjp(lambda features, wy, wx: (crops(features, wy, wx), (wy, wx)),
                 lambda weights, gradient: (backward(gradient, *weights), None, None))
    return crops


def _on_device(cpu_form, form):
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=cpu_form, default=form)


# Crops `[N, 7, 7, C]` from the weights `[N, 7, H]` and `[N, 7, W]` of the axes.
_crops = _linear(_on_device(cpu.by_windows, products.by_products),
                 _on_device(cpu.windows_backward, products.products_backward))
_products = _linear(products.by_products, products.products_backward)
