"""What the kernels of RoIAlign by windows share: which cells a RoI reads on its level, and a cell's weight in a bin.

A kernel pools items, each a RoI on one level. It cuts the item's cells in tiles of a fixed size, so that a RoI of any
size is served: a small one reads a tile or two, one that covers P2 reads them all. Weights are those of `axis_weights`,
as a function of the cell, so that a kernel computes the few it needs where it needs them.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.roi_align import exact_ceil


class Items(NamedTuple):
    """N items: `corners` (x1, y1, x2, y2) in cells of `levels`; cell 0's centre is at 0. Others than `active` are 0."""

    corners: Float[Array, "*B N 4"]
    levels: Int[Array, "*B N"]
    active: Bool[Array, "*B N"]


class Axis(NamedTuple):
    """One axis of items: a bin holds `count` samples, `step` cells apart; bin p begins at `start + p * bin_size`.

    `first`, `used` int32: the first cell with a weight other than 0, and how many cells from it to the last; `used` is
    0 where there is none. `cells`: of the level along this axis. All have the items' shape.
    """

    start: jax.Array
    bin_size: jax.Array
    step: jax.Array
    count: jax.Array
    first: jax.Array
    used: jax.Array
    cells: jax.Array


def axes_of(items: Items, shapes) -> tuple[Axis, Axis]:
    """The rows' and the columns' `Axis` of items on levels of `shapes` (h, w); those not `active` use no cells."""
    corners, levels, active = items
    height, width = (of_level([shape[axis] for shape in shapes], levels) for axis in (0, 1))
    rows, columns = (_axis(corners[..., axis], corners[..., axis + 2], cells)
                     for axis, cells in ((1, height), (0, width)))
    here = active & (rows.used > 0) & (columns.used > 0)
    return tuple(axis._replace(used=jnp.where(here, axis.used, 0)) for axis in (rows, columns))


def of_level(values, levels):
    """`values[level]` for each of `levels`, as a sum of selections: a gather of scalars costs more."""
    return sum(jnp.where(levels == k, value, 0) for k, value in enumerate(values))


def _axis(start, end, cells):
    size = end - start
    bin_size, count = size / BINS, jnp.maximum(exact_ceil(size, BINS), 0)
    step = jnp.where(count > 0, bin_size / jnp.maximum(count, 1), 1)
    first = start + step / 2
    last = start + (BINS - 1) * bin_size + step / 2 + (count - 1) * step
    within = lambda sample: jnp.floor(jnp.clip(sample, 0, cells - 1)).astype(jnp.int32)
    end_cell = jnp.minimum(within(last) + 1, cells - 1)
    here = (count > 0) & (last >= -1) & (first <= cells)
    used = jnp.where(here, end_cell - within(first) + 1, 0)
    return Axis(start, bin_size, step, count, jnp.where(here, within(first), 0), used, cells)


def weight(bin, cell, start, bin_size, step, count, cells):
    """The weight of `cell` in the average of `bin`, as `axis_weights` has it; 0 beyond the map. All float32."""
    first = start + bin * bin_size + step / 2
    below = lambda edge: jnp.clip(jnp.ceil((edge - first) / step), 0, count)  # samples below it
    before, here, after = below(cell - 1), below(cell), below(cell + 1)
    into, own = here - before, after - here  # samples in [cell - 1, cell) and [cell, cell + 1)
    from_before = into * jnp.clip(first + step * (here + before - 1) / 2 - (cell - 1), 0, 1)
    to_next = own * jnp.clip(first + step * (after + here - 1) / 2 - cell, 0, 1)
    at_end = jnp.clip(jnp.floor((cells - first) / step) + 1, 0, count) - after
    total = own - to_next + from_before
    total = total + jnp.where(cell == 0, into - from_before, 0) + jnp.where(cell == cells - 1, to_next + at_end, 0)
    return jnp.where(cell < cells, total, 0) / jnp.maximum(count, 1)
