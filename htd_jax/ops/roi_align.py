"""RoIAlign: `aligned`, with the adaptive sampling grid of the original (`sampling_ratio = 0`), exactly.

A bin of a RoI averages bilinear samples on a grid of n points an axis, n = ceil(size / 7) in cells of the level, so the
number of samples differs from RoI to RoI. But bilinear weights, grid and border rule all factor by axis: a crop is
`Wy (7 x H) . F (H x W x C) . Wx^T (W x 7)`, and the weights have a closed form for any n. Two matrix products, static
shapes, no gather; backward is the same two products. Coordinates carry no gradient, as in the original.

Accelerators do these products whole, for many RoIs at once. A CPU gains six times on small RoIs by cutting out the
window of the map that has weights other than 0, RoI by RoI: that is the same sum without its zeros.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BINS = 7
CHUNK = 128  # RoIs whose half-contracted crops are in memory at once
CPU_CHUNK = 32  # at most
WINDOWS = (16, 40, 96)  # cells a side; on its own level a RoI that is not very long fits the second
STRIDES = (4, 8, 16, 32)
FINEST = 56  # a RoI of this many pixels or less (geometric mean of the sides, up to twice it) lies on P2


def axis_weights(start, end, cells):
    """Weights `[N, 7, cells]` of the cells of one axis in each bin's average; `start`, `end` `[N]` in cells.

    Sample i of a bin lies at (i + .5)/n of it. One below -1 or above `cells` counts 0, one between -1 and 0 is moved
    to 0, one beyond the last cell to the last cell. Without size, or a negative one, all weights are 0.
    """
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
    return _crops(features, wy.astype(features.dtype), wx.astype(features.dtype))


@jax.custom_vjp
def _crops(features, wy, wx):
    """Crops `[N, 7, 7, C]` from the weights `[N, 7, H]` and `[N, 7, W]` of the axes, in the device's best form."""
    return jax.lax.platform_dependent(features, wy, wx, cpu=_by_windows, default=_in_chunks)


def _crops_forward(features, wy, wx):
    return _crops(features, wy, wx), (wy, wx)


def _crops_backward(weights, gradient):
    """The gradient of the features; the weights have none."""
    return jax.lax.platform_dependent(gradient, *weights, cpu=_windows_backward, default=_chunks_backward), None, None


_crops.defvjp(_crops_forward, _crops_backward)


def _in_chunks(features, wy, wx):
    """For accelerators: whole maps, `CHUNK` RoIs at a time."""
    count = wy.shape[0]
    if count <= CHUNK:
        return _contract(features, wy, wx)
    pad = -count % CHUNK
    split = lambda w: jnp.pad(w, ((0, pad), (0, 0), (0, 0))).reshape(-1, CHUNK, *w.shape[1:])
    crops = jax.lax.map(lambda w: _contract(features, *w), (split(wy), split(wx)))
    return crops.reshape(-1, *crops.shape[2:])[:count]


def _chunks_backward(gradient, wy, wx):
    return _transposed(lambda features: _in_chunks(features, wy, wx), gradient, wy, wx)


def _transposed(crop, gradient, wy, wx):
    """What the linear `crop` makes of the features `[H, W, C]`, backwards."""
    shape = wy.shape[-1], wx.shape[-1], gradient.shape[-1]
    return jax.linear_transpose(crop, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


@jax.custom_batching.sequential_vmap  # image by image: batched, its loops would run as long as the longest for all
def _by_windows(features, wy, wx):
    """For CPUs: RoIs within a window one by one, the others whole in chunks, those without weights not at all."""
    plan = _plan(wy, wx)

    def window(k, crops, shape):
        i, y, x = plan.place(k, shape)
        cut = jax.lax.dynamic_slice(features, (y, x, 0), (*shape, features.shape[-1]))
        return crops.at[i].set(_rows_first(cut, *_cut_weights(wy, wx, i, y, x, shape))[0])

    def chunk(k, crops):
        index = plan.chunk(k)
        return crops.at[index].set(_contract(features, wy[index], wx[index]), mode="drop")

    return _work(plan, window, chunk, jnp.zeros((len(wy), BINS, BINS, features.shape[-1]), features.dtype))


@jax.custom_batching.sequential_vmap
def _windows_backward(gradient, wy, wx):
    plan, channels = _plan(wy, wx), gradient.shape[-1]

    def window(k, total, shape):
        i, y, x = plan.place(k, shape)
        weights = _cut_weights(wy, wx, i, y, x, shape)
        part = _transposed(lambda cut: _rows_first(cut, *weights), gradient[i][None], *weights)
        before = jax.lax.dynamic_slice(total, (y, x, 0), (*shape, channels))
        return jax.lax.dynamic_update_slice(total, before + part, (y, x, 0))

    def chunk(k, total):
        index = plan.chunk(k)
        weights = (jnp.where((index < len(wy))[:, None, None], wy[index], 0), wx[index])
        return total + _transposed(lambda features: _contract(features, *weights), gradient[index], *weights)

    return _work(plan, window, chunk, jnp.zeros((wy.shape[-1], wx.shape[-1], channels), gradient.dtype))


def _work(plan, window, chunk, result):
    """`result` after window(k, result, shape) for each RoI in a window and chunk(k, result) for the chunks of others."""
    start = 0
    for kind, shape in enumerate(plan.windows):
        result = jax.lax.fori_loop(start, plan.ends[kind], functools.partial(window, shape=shape), result)
        start = plan.ends[kind]
    return jax.lax.fori_loop(0, -(-(plan.ends[-1] - start) // plan.chunk_size), chunk, result)


class _Plan(NamedTuple):
    """`order [N]`: the RoIs of each of the `windows` (height, width), then others, then those without weights; `ends`:
    where each of these parts but the last ends; `top`, `left` `[N]`: the RoIs' first cells; `map`: height and width."""

    order: jax.Array
    ends: jax.Array
    top: jax.Array
    left: jax.Array
    map: tuple
    windows: tuple

    def place(self, k, shape):
        """The k-th RoI in order, and the first row and column of its window."""
        i = self.order[k]
        return i, jnp.minimum(self.top[i], self.map[0] - shape[0]), jnp.minimum(self.left[i], self.map[1] - shape[1])

    @property
    def chunk_size(self):
        """RoIs of a chunk. Few of a list need one, and what fills it up is computed in vain."""
        return min(CPU_CHUNK, -(-len(self.order) // 8))

    def chunk(self, k):
        """The k-th chunk of RoIs that no window holds, filled up with the length of the list."""
        size = self.chunk_size
        slot = (self.ends[-2] if self.windows else 0) + k * size + jnp.arange(size)
        return jnp.where(slot < self.ends[-1], self.order.at[slot].get(mode="clip"), len(self.order))


def _plan(wy, wx):
    """The `_Plan` of RoIs with these weights. Windows are of no use where the map is but a few of them."""
    height, width = wy.shape[-1], wx.shape[-1]
    shapes = [(min(side, height), min(side, width)) for side in WINDOWS]
    windows = tuple(shape for shape in shapes if 4 * shape[0] * shape[1] < height * width)
    (top, rows), (left, columns) = _extent(wy), _extent(wx)
    kind = sum((rows > h) | (columns > w) for h, w in windows) if windows else jnp.zeros(len(wy), jnp.int32)
    kind = jnp.where((rows == 0) | (columns == 0), len(windows) + 1, kind)
    ends = jnp.cumsum(jnp.bincount(kind, length=len(windows) + 1))
    return _Plan(jnp.argsort(kind, stable=True), ends, top, left, (height, width), windows)


def _extent(weights):
    """First cell `[N]` of an axis with a weight other than 0, and the number of cells to the last."""
    used = (weights != 0).any(axis=1)
    first, behind = jnp.argmax(used, axis=1), jnp.argmax(used[:, ::-1], axis=1)
    return first, jnp.where(used.any(axis=1), used.shape[1] - behind - first, 0)


def _cut_weights(wy, wx, i, y, x, shape):
    """RoI i's weights within its window: `[1, 7, height]` and `[1, 7, width]`."""
    return (jax.lax.dynamic_slice(wy, (i, 0, y), (1, BINS, shape[0])),
            jax.lax.dynamic_slice(wx, (i, 0, x), (1, BINS, shape[1])))


def _contract(features, wy, wx):
    """The longer axis first: that leaves the smaller intermediate."""
    if features.shape[0] > features.shape[1]:
        return _rows_first(features, wy, wx)
    return jnp.einsum("nph,nqhc->npqc", wy, jnp.einsum("nqw,hwc->nqhc", wx, features))


def _rows_first(features, wy, wx):
    return jnp.einsum("npwc,nqw->npqc", jnp.einsum("nph,hwc->npwc", wy, features), wx)


def roi_levels(rois, levels=len(STRIDES)):
    """Level int32 `[N]` of each RoI `[N, 4]`: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..levels-1."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, levels - 1).astype(jnp.int32)


def extend_edges(pyramid, padded):
    """P2..P5 (each `[B, H, W, C]`) whose cells just beyond `padded [B, 2]` (h, w in pixels) repeat the last within.

    So a RoI at the edge of an image with more padding reads what the border rule would give it at the end of a map.
    """
    return [_extend_edge(_extend_edge(features, 1, padded[:, 0], stride), 2, padded[:, 1], stride)
            for features, stride in zip(pyramid, STRIDES)]


def _extend_edge(features, axis, end, stride):
    beyond = jnp.arange(features.shape[axis]) == -(-end[:, None] // stride)
    return _repeated(axis, features, jnp.expand_dims(beyond, (3 - axis, 3)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _repeated(axis, features, here):
    """`features` whose cells `here` are what the ones before them along `axis` are."""
    return jnp.where(here, jnp.roll(features, 1, axis), features)


def _repeated_backward(axis, here, gradient):
    """In one pass over the map: derived from the above, it would be three, with copies of the map between them."""
    before = jnp.roll(here, -1, axis)
    return jnp.where(here, 0, gradient) + jnp.where(before, jnp.roll(gradient, -1, axis), 0), None


_repeated.defvjp(lambda axis, features, here: (_repeated(axis, features, here), here), _repeated_backward)


def crop_own_level(pyramid, rois):
    """Crops `[N, 7, 7, C]` of `rois [N, 4]`, each from its own level of `pyramid` (P2..P5, each `[H, W, C]`)."""
    levels = roi_levels(rois)
    crops = sum(roi_align(features, rois, stride, where=levels == k)
                for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))
    return jax.lax.optimization_barrier(crops)  # or all four terms are held until the backward pass


def crop_all_levels(pyramid, rois, own):
    """Crops `[4, N, 7, 7, C]` of `rois [N, 4]` from every level of `pyramid` (P2..P5).

    `own [N, 7, 7, C]` is what `crop_own_level` gives: one of the four, which is not pooled again.
    """
    levels = roi_levels(rois)
    others = [roi_align(features, rois, stride, where=levels != k)
              for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    return _with_own(others, own, levels)


def crop_own_and_all_levels(pyramid, rois, where):
    """`crop_own_level` of `rois [N, 4]`, and `crop_all_levels` of the first P where `where` bool [P] (else 0 but for the own).

    As one call for each level, whose backward pass makes one gradient of its map in place of two.
    """
    levels, first = roi_levels(rois), slice(len(where))
    both = jnp.concatenate([rois, rois[first]])
    crops = [roi_align(features, both, stride, where=jnp.concatenate([levels == k, where & (levels[first] != k)]))
             for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    own = jax.lax.optimization_barrier(sum(part[:len(rois)] for part in crops))
    return own, _with_own([part[len(rois):] for part in crops], own[first], levels[first])


def _with_own(others, own, levels):
    """`[4, N, 7, 7, C]`: the crops of each level in `others`, but those that `own` holds."""
    here = lambda k: (levels == k)[:, None, None, None]
    return jnp.stack([jnp.where(here(k), own, part) for k, part in enumerate(others)])
