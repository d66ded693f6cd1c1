"""Items in groups, one a grid step, and a group's crops: one after another, as kernels make them, or bin by bin.

Bin by bin, `[7, 7, B, N, C]`, the layers that follow read them. A row at a time would be slow to move. Rows at a
distance move together, but only in float32 and 128 channels at a time, so that is how the crops are held: of each 56
rows, bin (p, q) in row p * 8 + q.
"""
import itertools

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.tpu.atlas import GROUP, LANES
from htd_jax.ops.windows import Items

SLOTS = 8  # of a row of 7 bins, so that it fills a tile of vectors
CROP = BINS * SLOTS  # rows of a crop


def joined(parts):
    """The items of all parts, each filled up to whole groups with some that are not active."""
    def filled_up(x):
        return jnp.pad(x, [(0, -x.shape[1] % GROUP if axis == 1 else 0) for axis in range(x.ndim)])

    return Items(*[jnp.concatenate(list(map(filled_up, arrays)), axis=1) for arrays in zip(*parts)])


def spans(parts):
    """The groups of each part, as ranges."""
    ends = list(itertools.accumulate(-(-part.levels.shape[1] // GROUP) for part in parts))
    return [range(start, end) for start, end in zip([0, *ends], ends)]


def specs(groups, block):
    """Blocks of a group's crops of each part, which stay where they are in the groups of the others.

    Of a part's last group some crops may lie beyond the end.
    """
    def spec(span):
        number = lambda g: jnp.clip(g, span.start, span.stop - 1) - span.start
        return pl.BlockSpec((BINS, BINS, None, GROUP, block), lambda b, c, g: (0, 0, b, number(g), c))

    return list(map(spec, groups))


def split(refs, first, second):
    """The first of a kernel's references, the second of them, and the rest."""
    return refs[:first], refs[first:first + second], refs[first + second:]


def room(channels):
    """Vector memory for the crops of a group."""
    return pltpu.VMEM((-(-channels // LANES) * GROUP * CROP, LANES), jnp.float32)


def put(held, k, crop):
    """Makes `crop [56, C]` number k of those held."""
    for part, first, size in _parts(crop.shape[1]):
        held[_rows_of(part, k), :size] = crop[:, first:first + size]


def take(held, k, channels):
    """Crop k of those held, `[56, C]`."""
    return jnp.concatenate([held[_rows_of(part, k), :][:, :size] for part, _, size in _parts(channels)], axis=1)


def to_bins(held, bins):
    """Writes the crops held into the reference `bins [7, 7, GROUP, C]`."""
    for (p, q), (part, first, size) in _pieces(bins):
        bins[p, q, :, first:first + size] = held[_rows_of_bin(part, p, q), :][:, :size].astype(bins.dtype)


def from_bins(bins, held):
    """Fills `held` from the reference `bins [7, 7, GROUP, C]`; rows of no bin keep what they have."""
    for (p, q), (part, first, size) in _pieces(bins):
        held[_rows_of_bin(part, p, q), :size] = bins[p, q, :, first:first + size].astype(held.dtype)


def _parts(channels):
    return [(k, k * LANES, min(LANES, channels - k * LANES)) for k in range(-(-channels // LANES))]


def _pieces(bins):
    return itertools.product(np.ndindex(BINS, BINS), _parts(bins.shape[-1]))


def _rows_of(part, k):
    return pl.ds(pl.multiple_of((part * GROUP + k) * CROP, SLOTS), CROP)


def _rows_of_bin(part, p, q):
    return pl.ds(part * GROUP * CROP + p * SLOTS + q, GROUP, stride=CROP)
