"""RoIAlign: `aligned`, with the adaptive sampling grid of the original (`sampling_ratio = 0`), exactly.

A bin of a RoI averages bilinear samples on a grid of n points an axis, n = ceil(size / 7) in cells of the level, so the
number of samples differs from RoI to RoI. But bilinear weights, grid and border rule all factor by axis: a crop is
`Wy (7 x H) . F (H x W x C) . Wx^T (W x 7)`, and the weights have a closed form for any n. Two matrix products, static
shapes, no gather; backward is the same two products. Coordinates carry no gradient, as in the original.
"""
import jax
import jax.numpy as jnp

BINS = 7
CHUNK = 128  # RoIs whose half-contracted crops are in memory at once
STRIDES = (4, 8, 16, 32)
FINEST = 56  # a RoI of this many pixels or less (geometric mean of the sides, up to twice it) lies on P2


def axis_weights(start, end, cells):
    """Weights `[N, 7, cells]` of the cells of one axis in each bin's average; `start`, `end` `[N]` in cells.

    Sample i of a bin lies at (i + .5)/n of it. One below -1 or above `cells` counts 0, one between -1 and 0 is moved
    to 0, one beyond the last cell to the last cell. Without size, or a negative one, all weights are 0.
    """
    size = (end - start)[:, None, None]
    bin_size = size / BINS
    n = jnp.maximum(_exact_ceil(size, BINS), 0)
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


def _exact_ceil(value, divisor):
    """ceil(value / divisor). Compiled, the division is a product with 1 / divisor: 42 / 7 would be more than 6."""
    n = jnp.ceil(value / divisor)
    return n - (value <= (n - 1) * divisor) + (value > n * divisor)


def roi_align(features, rois, stride, where=None):
    """Crops `[N, 7, 7, C]` of `features [H, W, C]` at `rois [N, 4]` (pixels), a level of `stride` pixels a cell.

    `where` bool [N]: the other crops are 0. Same dtype as the features; weights are computed in float32.
    """
    height, width, _ = features.shape
    corners = jax.lax.stop_gradient(rois) / stride - 0.5
    wx = axis_weights(corners[:, 0], corners[:, 2], width)
    wy = axis_weights(corners[:, 1], corners[:, 3], height)
    # A RoI without area in one axis pools to 0 because that axis's weights are 0.
    if where is not None:
        wy = jnp.where(where[:, None, None], wy, 0)
    return _in_chunks(features, wy.astype(features.dtype), wx.astype(features.dtype))


def _in_chunks(features, wy, wx):
    count = wy.shape[0]
    if count <= CHUNK:
        return _contract(features, wy, wx)
    pad = -count % CHUNK
    split = lambda w: jnp.pad(w, ((0, pad), (0, 0), (0, 0))).reshape(-1, CHUNK, *w.shape[1:])
    crops = jax.lax.map(lambda w: _contract(features, *w), (split(wy), split(wx)))
    return crops.reshape(-1, *crops.shape[2:])[:count]


def _contract(features, wy, wx):
    """The longer axis first: that leaves the smaller intermediate."""
    if features.shape[0] > features.shape[1]:
        return jnp.einsum("npwc,nqw->npqc", jnp.einsum("nph,hwc->npwc", wy, features), wx)
    return jnp.einsum("nph,nqhc->npqc", wy, jnp.einsum("nqw,hwc->nqhc", wx, features))


def roi_levels(rois, levels=len(STRIDES)):
    """Level int32 `[N]` of each RoI `[N, 4]`: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..levels-1."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, levels - 1).astype(jnp.int32)


def crop_own_level(pyramid, rois):
    """Crops `[N, 7, 7, C]` of `rois [N, 4]`, each from its own level of `pyramid` (P2..P5, each `[H, W, C]`)."""
    levels = roi_levels(rois)
    return sum(roi_align(features, rois, stride, where=levels == k)
               for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))


def crop_all_levels(pyramid, rois):
    """Crops `[4, N, 7, 7, C]` of `rois [N, 4]` from every level of `pyramid` (P2..P5)."""
    return jnp.stack([roi_align(features, rois, stride) for features, stride in zip(pyramid, STRIDES)])


def select_own_level(crops, rois):
    """What `crop_own_level` gives, `[N, 7, 7, C]`, picked from `crop_all_levels`' `[4, N, 7, 7, C]`."""
    return jnp.take_along_axis(crops, roi_levels(rois)[None, :, None, None, None], axis=0)[0]
