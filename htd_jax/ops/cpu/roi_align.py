"""RoIAlign on a CPU: each RoI is contracted with the window of the map that has weights other than 0.

That is the sum of `crop_products` without its zeros, six times as fast on small RoIs.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from htd_jax.ops.crop_products import BINS, contract, rows_first, transposed

CHUNK = 32  # RoIs that fit no window, contracted at once; at most
WINDOWS = (16, 40, 96)  # cells a side; on its own level a RoI that is not very long fits the second


@jax.custom_batching.sequential_vmap  # image by image: batched, its loops would run as long as the longest for all
def by_windows(features, wy, wx):
    """For CPUs: RoIs within a window one by one, the others whole in chunks, those without weights not at all."""
    plan = _plan(wy, wx)

    def window(k, crops, shape):
        i, y, x = plan.place(k, shape)
        cut = jax.lax.dynamic_slice(features, (y, x, 0), (*shape, features.shape[-1]))
        return crops.at[i].set(rows_first(cut, *_cut_weights(wy, wx, i, y, x, shape))[0])

    def chunk(k, crops):
        index = plan.chunk(k)
        return crops.at[index].set(contract(features, wy[index], wx[index]), mode="drop")

    return _work(plan, window, chunk, jnp.zeros((len(wy), BINS, BINS, features.shape[-1]), features.dtype))


@jax.custom_batching.sequential_vmap
def windows_backward(gradient, wy, wx):
    plan, channels = _plan(wy, wx), gradient.shape[-1]

    def window(k, total, shape):
        i, y, x = plan.place(k, shape)
        weights = _cut_weights(wy, wx, i, y, x, shape)
        part = transposed(lambda cut: rows_first(cut, *weights), gradient[i][None], *weights)
        before = jax.lax.dynamic_slice(total, (y, x, 0), (*shape, channels))
        return jax.lax.dynamic_update_slice(total, before + part, (y, x, 0))

    def chunk(k, total):
        index = plan.chunk(k)
        weights = (jnp.where((index < len(wy))[:, None, None], wy[index], 0), wx[index])
        return total + transposed(lambda features: contract(features, *weights), gradient[index], *weights)

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
        return min(CHUNK, -(-len(self.order) // 8))

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
