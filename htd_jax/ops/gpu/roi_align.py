"""RoIAlign on a GPU by windows: a Pallas-Triton kernel, a program for each item and 128 channels.

A program reads the tiles of 8 x 16 cells that its RoI needs, on its level, as many as it takes, and adds
`K (64 x 128) . F (128 x C)` for each, where K is the outer product of the two axes' weights.
"""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.gpu import tiles
from htd_jax.ops.gpu.tiles import COLUMNS, ROWS, SLOTS
from htd_jax.ops.windows import Items


def fits(channels: int) -> bool:
    """Whether the kernels can work on so many channels."""
    return tiles.channels_at_once(channels, jnp.bfloat16) >= 16  # of a matrix product's operand, at least


def crops(pyramid: Sequence[Float[Array, "B _ _ C"]], parts: Sequence[Items],
          interpret: bool = False) -> list[Float[Array, "B _ 7 7 C"]]:
    """The crops of each of `parts` from a pyramid; 0 unless active. `interpret`: run on any device, slowly."""
    items = tiles.joined(parts)
    (batch, count), channels = items.levels.shape, pyramid[0].shape[-1]
    shapes, block = tuple(level.shape[1:3] for level in pyramid), tiles.channels_at_once(channels, pyramid[0].dtype)
    whole = [pl.BlockSpec(memory_space=pl.ANY)]
    out = pl.pallas_call(
        functools.partial(_kernel, shapes=shapes, block=block, count=count), grid=(batch * count, channels // block),
        out_shape=jax.ShapeDtypeStruct((batch * count * BINS**2, channels), pyramid[0].dtype),
        in_specs=whole * (2 + len(shapes)), out_specs=whole[0], interpret=interpret, name="roi_align_tiles",
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2),
    )(*tiles.scalars_of(items, shapes), *[level.reshape(-1, channels) for level in pyramid])
    return jnp.split(out.reshape(batch, count, BINS, BINS, channels), tiles.ends(parts), axis=1)


def _kernel(ints, floats, *refs, shapes, block, count):
    (*maps, out), item, channels = refs, pl.program_id(0), pl.program_id(1) * block + jnp.arange(block)
    level, *extent = tiles.read(ints, item, 5)
    samples, total = tiles.read(floats, item, 8), jnp.zeros((SLOTS**2, block), jnp.float32)
    for k, (features, shape) in enumerate(zip(maps, shapes)):  # of the four loops, three have no steps
        total = _pooled(total, features, shape, item // count, channels, level == k, extent, samples)
    rows, here = tiles.crop_rows(item)
    plt.store(out.at[tiles.elements(rows, channels)], total.astype(out.dtype), mask=tiles.spread(here, block))


def _pooled(total, features, shape, image, channels, here, extent, samples):
    """`total [64, C]` and, if `here`, what the item with `extent` and `samples` reads in the level `features`."""
    (height, width), (top, rows, left, columns) = shape, extent

    def strip(j, total):
        x = left + j * COLUMNS
        across = tiles.column_weights(samples, x, width, True)

        def tile(i, total):
            y = top + i * ROWS
            down = tiles.row_weights(samples, y, height, True)
            cells, within = tiles.tile_cells(y, x, width, (top + rows, left + columns))
            cells = (image * height) * width + cells
            values = plt.load(features.at[tiles.elements(cells, channels)],
                              mask=tiles.spread(within, channels.size), other=0)
            weights = (down[:, :, None] * across[:, None, :]).reshape(SLOTS**2, ROWS * COLUMNS).astype(values.dtype)
            return total + jnp.dot(weights, values, precision=tiles.precision(values.dtype),
                                   preferred_element_type=jnp.float32)

        return jax.lax.fori_loop(0, pl.cdiv(rows, ROWS), tile, total)

    return jax.lax.fori_loop(0, jnp.where(here, pl.cdiv(columns, COLUMNS), 0), strip, total)
