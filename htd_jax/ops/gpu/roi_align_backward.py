"""The gradient of `gpu.roi_align`: a program for each tile of 8 x 16 cells of a level and 128 channels.

A program sums in float32, in registers, what the items that read its tile give to it, in their order: nothing is added
in memory, and the result is always the same. Which items those are it is told by a bit for each.
"""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from htd_jax.ops.gpu import tiles
from htd_jax.ops.gpu.tiles import COLUMNS, ROWS, SLOTS
from htd_jax.ops.windows import Items

BITS = 32


def gradients(crops: Sequence[Float[Array, "B _ 7 7 C"]], parts: Sequence[Items], shapes: Sequence[tuple[int, int]],
              interpret: bool = False) -> list[Float[Array, "B _ _ C"]]:
    """Gradients of the levels of `shapes` (h, w) from those of the crops of each of `parts`."""
    items, channels = tiles.joined(parts), crops[0].shape[-1]
    ints, floats = tiles.scalars_of(items, shapes)
    rows = jnp.concatenate(crops, axis=1).reshape(-1, channels)
    return [_of_level(rows, ints, floats, k, shape, items.levels.shape, interpret) for k, shape in enumerate(shapes)]


def _of_level(rows, ints, floats, level, shape, items, interpret):
    (height, width), (batch, count), channels = shape, items, rows.shape[-1]
    block = tiles.channels_at_once(channels, rows.dtype)
    readers = _readers(ints.reshape(batch, count, -1), level, shape)
    whole = [pl.BlockSpec(memory_space=pl.ANY)]
    out = pl.pallas_call(
        functools.partial(_kernel, shape=shape, block=block, count=count), name="roi_align_tiles_backward",
        grid=(pl.cdiv(width, COLUMNS), pl.cdiv(height, ROWS), batch * (channels // block)),
        out_shape=jax.ShapeDtypeStruct((batch * height * width, channels), rows.dtype),
        in_specs=whole * 3, out_specs=whole[0], interpret=interpret,
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2))(readers, floats, rows)
    return out.reshape(batch, height, width, channels)


def _readers(ints, level, shape):
    """Int32 `[B * rows of tiles, columns of tiles, words]`: bit n % 32 of word n // 32: item n reads the tile."""
    item_level, top, rows, left, columns = (ints[..., i] for i in range(5))

    def reads(first, used, size, side):
        tile = jnp.arange(pl.cdiv(size, side))[None, :, None] * side
        first, used = first[:, None], used[:, None]
        return (first < tile + side) & (first + used > tile) & (used > 0)

    down = reads(top, jnp.where(item_level == level, rows, 0), shape[0], ROWS)
    tiles_read = down[:, :, None] & reads(left, columns, shape[1], COLUMNS)[:, None]
    tiles_read = jnp.pad(tiles_read, ((0, 0), (0, 0), (0, 0), (0, -tiles_read.shape[-1] % BITS)))
    words = tiles_read.reshape(*tiles_read.shape[:3], -1, BITS).astype(jnp.uint32)
    words <<= jnp.arange(BITS, dtype=jnp.uint32)[None, None, None, None]
    return jax.lax.bitcast_convert_type(words.sum(axis=-1, dtype=jnp.uint32), jnp.int32).reshape(-1, *words.shape[2:4])


def _kernel(readers, floats, gradient, out, *, shape, block, count):
    (height, width), blocks = shape, gradient.shape[-1] // block
    tile_x, tile_y, image = pl.program_id(0), pl.program_id(1), pl.program_id(2) // blocks
    channels = pl.program_id(2) % blocks * block + jnp.arange(block)
    y, x = tile_y * ROWS, tile_x * COLUMNS

    def add(item, total):
        samples = tiles.read(floats, item, 8)
        down, across = tiles.row_weights(samples, y, height, False), tiles.column_weights(samples, x, width, False)
        weights = (down[:, None, :] * across[None]).reshape(ROWS * COLUMNS, SLOTS**2).astype(gradient.dtype)
        bins, here = tiles.crop_rows(item)
        values = plt.load(gradient.at[tiles.elements(bins, channels)], mask=tiles.spread(here, block), other=0)
        return total + jnp.dot(weights, values, precision=tiles.precision(values.dtype),
                               preferred_element_type=jnp.float32)

    def word(w, total):
        bits = readers[image * pl.cdiv(height, ROWS) + tile_y, tile_x, w]

        def reader(_, carry):
            bits, total = carry
            lowest = jax.lax.population_count((bits & -bits) - 1)
            return bits & (bits - 1), add(image * count + w * BITS + lowest, total)

        return jax.lax.fori_loop(0, jax.lax.population_count(bits), reader, (bits, total))[1]

    total = jnp.zeros((ROWS * COLUMNS, block), jnp.float32)
    total = jax.lax.fori_loop(0, readers.shape[-1], word, total)
    cells, within = tiles.tile_cells(y, x, width, shape)
    cells = image * height * width + cells
    plt.store(out.at[tiles.elements(cells, channels)], total.astype(out.dtype), mask=tiles.spread(within, block))
