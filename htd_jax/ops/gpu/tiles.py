"""What the GPU's kernels of RoIAlign share: the items' scalars, and a tile's weights for all bins of a crop."""
import itertools

import jax
import jax.numpy as jnp

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.windows import Items, axes_of, weight

ROWS, COLUMNS = 8, 16  # cells of a tile
SLOTS = 8  # of each axis's 7 bins: sizes are powers of two
CHANNELS = 128  # of a program, at most
FLOAT32_CHANNELS = 32  # likewise: full float32 has no tensor cores, and its unrolled products take long to compile
INTS, FLOATS = 8, 8


def joined(parts):
    """The items of all parts."""
    return Items(*[jnp.concatenate(arrays, axis=1) for arrays in zip(*parts)])


def ends(parts):
    """Where each part but the last ends among the items of all."""
    return list(itertools.accumulate(part.levels.shape[1] for part in parts))[:-1]


def scalars_of(items, shapes):
    """Int32 `[B * N, 8]`: level, first row, rows, first column, columns; float32 `[B * N, 8]`: the axes' samples."""
    rows, columns = axes_of(items, shapes)
    zero = jnp.zeros_like(rows.first)
    ints = items.levels, rows.first, rows.used, columns.first, columns.used, zero, zero, zero
    floats = [value for axis in (rows, columns) for value in (axis.start, axis.bin_size, axis.step, axis.count)]
    flat = lambda values, dtype: jnp.stack([jnp.asarray(v, dtype) for v in values], axis=-1).reshape(-1, len(values))
    return flat(ints, jnp.int32), flat(floats, jnp.float32)


def channels_at_once(channels, dtype):
    """Channels of a program: the largest power of two, up to 128, that divides them."""
    return min(FLOAT32_CHANNELS if dtype == jnp.float32 else CHANNELS, channels & -channels)


def read(ref, item, count):
    """The first `count` scalars of an item."""
    return [ref[item, i] for i in range(count)]


def row_weights(floats, y, height, bins_first):
    """Weights of rows y .. y + 7: `[64, 8]` for `bins_first`, else `[8, 64]`; the 64 are bins p * 8 + q."""
    return _weights(lambda slot: slot // SLOTS, ROWS, floats[:4], y, height, bins_first)


def column_weights(floats, x, width, bins_first):
    """Likewise of columns x .. x + 15."""
    return _weights(lambda slot: slot % SLOTS, COLUMNS, floats[4:], x, width, bins_first)


def _weights(bin_of, size, samples, start, cells, bins_first):
    bins = bin_of(jnp.arange(SLOTS * SLOTS)).astype(jnp.float32)
    cell = (start + jnp.arange(size)).astype(jnp.float32)
    bins, cell = (bins[:, None], cell[None]) if bins_first else (bins[None], cell[:, None])
    return weight(bins, cell, *samples, float(cells))


def tile_cells(y, x, width, end):
    """Flat index `[128]`, in a map of `width`, of the cells of the tile at (y, x), and which lie before `end`."""
    cell = jnp.arange(ROWS * COLUMNS)
    rows, columns = y + cell // COLUMNS, x + cell % COLUMNS
    return rows * width + columns, (rows < end[0]) & (columns < end[1])


def crop_rows(item):
    """Row `[64]` of each bin p * 8 + q in crops `[items * 49, C]`, and which are bins of a crop."""
    slot = jnp.arange(SLOTS * SLOTS)
    p, q = slot // SLOTS, slot % SLOTS
    return (item * BINS + p) * BINS + q, (p < BINS) & (q < BINS)


def elements(rows, channels):
    """Index of an array of rows, for `channels [C]` of its `rows [M]`: both `[M, C]`, as loads and stores take them."""
    shape = rows.size, channels.size
    return jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(channels[None], shape)


def spread(mask, channels):
    """`mask [M]` for as many `channels`: `[M, C]`."""
    return jnp.broadcast_to(mask[:, None], (mask.size, channels))


def precision(dtype):
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
