"""All levels of an image's pyramid in one array of the TPU's vector memory, and the items that kernels pool from it.

P2 lies on top; P3, P4 and P5 lie side by side below it, which takes little more than P2's width. So one code pools from
any level: a level is but an offset.
"""
from typing import NamedTuple

import jax.numpy as jnp

from htd_jax.ops.windows import axes_of, of_level

ROWS, COLUMNS = 8, 32  # cells of a tile
ALIGN = 8  # columns begin at a multiple of it, as rows of vectors do
GROUP = 32  # items of a grid step
INTS, FLOATS = 8, 8  # scalars of an item
LANES = 128


class Atlas(NamedTuple):
    """`shapes`: (h, w) of the levels; `places`: their first row and column; `height`, `width` of the whole."""

    shapes: tuple
    places: tuple
    height: int
    width: int


def atlas_of(shapes):
    """The `Atlas` of levels of `shapes`; with room for tiles that reach beyond the last cell of a level."""
    widths = [round_up(width, ALIGN) for _, width in shapes]
    places, column = [(0, 0)], 0
    for width in widths[1:]:
        places.append((shapes[0][0], column))
        column += width
    below = max((height for height, _ in shapes[1:]), default=0)
    width = max(column + round_up(width, COLUMNS) for (_, column), width in zip(places, widths))
    return Atlas(tuple(shapes), tuple(places), shapes[0][0] + below + ROWS, width)


def round_up(value, multiple):
    return -(-value // multiple) * multiple


def channels_at_once(atlas, channels, dtype, budget):
    """The most channels whose `atlas` in `dtype` takes at most `budget` bytes: all, or a multiple of 128; else 0."""
    cells = atlas.height * atlas.width * jnp.dtype(dtype).itemsize
    blocks = [channels] + [block for block in range(channels - channels % LANES, 0, -LANES) if channels % block == 0]
    return next((block for block in blocks if cells * round_up(block, LANES) <= budget), 0)


def scalars_of(items, atlas):
    """Int32 `[B * N * 8]` and float32 `[B * N * 8]`: what a kernel must know of each item, N a multiple of `GROUP`."""
    rows, columns = axes_of(items, atlas.shapes)
    left = columns.first - columns.first % ALIGN
    row_tiles = -(-rows.used // ROWS)
    column_tiles = jnp.where(columns.used > 0, -(-(columns.first + columns.used - left) // COLUMNS), 0)
    # Tiles that would end beyond the level begin further left, if they can: the atlas need not be so wide.
    left = jnp.clip(round_up(columns.cells, ALIGN) - column_tiles * COLUMNS, 0, left)
    offset = lambda axis: of_level([place[axis] for place in atlas.places], items.levels)
    ints = rows.first, row_tiles, left, column_tiles, offset(0), offset(1), rows.cells, columns.cells
    floats = [value for axis in (rows, columns) for value in (axis.start, axis.bin_size, axis.step, axis.count)]
    flat = lambda values, dtype: jnp.stack([jnp.asarray(v, dtype) for v in values], axis=-1).reshape(-1)
    return flat(ints, jnp.int32), flat(floats, jnp.float32)


class Item(NamedTuple):
    """The scalars of one item, as a kernel reads them."""

    top: object
    row_tiles: object
    left: object
    column_tiles: object
    row_offset: object
    column_offset: object
    rows: tuple
    columns: tuple

    def place(self, i, j):
        """First row and column of tile (i, j) in the level, and in the atlas."""
        y, x = self.top + i * ROWS, self.left + j * COLUMNS
        return y, x, self.row_offset + y, self.column_offset + x


def read_item(ints, floats, k):
    """`Item` k of the group whose scalars are in the references `ints` and `floats`."""
    whole = [ints[k * INTS + i] for i in range(INTS)]
    real = [floats[k * FLOATS + i] for i in range(FLOATS)]
    cells = [value.astype(jnp.float32) for value in whole[6:]]
    return Item(*whole[:6], (*real[:4], cells[0]), (*real[4:], cells[1]))
