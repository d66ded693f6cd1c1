"""RoIAlign on a TPU by windows: a Pallas kernel that holds an image's whole pyramid in vector memory.

The pyramid comes in once for each image (46 MB at 800x1344 in bfloat16), and every RoI reads from there the tiles of
8 x 32 cells that it needs, on the level it needs, as many as it takes. A tile adds `K (56 x 256) . F (256 x C)` to the
crop, where K is the outer product of the two axes' weights: one matrix product with float32 sums.
"""
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from htd_jax.ops.roi_align import BINS
from htd_jax.ops.tpu.atlas import ALIGN, COLUMNS, FLOATS, GROUP, INTS, ROWS, read_item, scalars_of
from htd_jax.ops.windows import weight

SLOTS = 8  # of a row of 7 bins, so that it fills a tile of vectors
VMEM = 120 * 2**20


def crops(pyramid, rois, levels, active, atlas, block, interpret=False):
    """Crops `[B, N, 7, 7, C]` of `rois [B, N, 4]` on `levels [B, N]` of `pyramid` (each `[B, H, W, C]`), 0 where not
    `active [B, N]`; `block` channels at a time."""
    batch, count = levels.shape
    channels, dtype = pyramid[0].shape[-1], pyramid[0].dtype
    scalars = scalars_of(*filled_up(rois, levels, active), atlas)
    groups = -(-count // GROUP)
    kernel = functools.partial(_kernel, atlas=atlas, block=block)
    out = pl.pallas_call(
        kernel, grid=(batch, channels // block, groups),
        out_shape=jax.ShapeDtypeStruct((batch * groups * GROUP, BINS, SLOTS, channels), dtype),
        in_specs=[*scalar_specs(groups), *[pl.BlockSpec(memory_space=pl.ANY)] * len(pyramid)],
        out_specs=pl.BlockSpec((GROUP, BINS, SLOTS, block), lambda b, c, g: (b * groups + g, 0, 0, c)),
        scratch_shapes=[pltpu.VMEM((atlas.height, atlas.width, block), dtype),
                        pltpu.SemaphoreType.DMA((len(pyramid),))],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        interpret=interpret, name="roi_align_tiles")(*scalars, *widened(pyramid, atlas))
    return out.reshape(batch, groups * GROUP, BINS, SLOTS, channels)[:, :count, :, :BINS]


def filled_up(rois, levels, active):
    """The items with more that are not active, up to whole groups."""
    more = (0, 0), (0, -rois.shape[1] % GROUP)
    return jnp.pad(rois, (*more, (0, 0))), jnp.pad(levels, more), jnp.pad(active, more)


def scalar_specs(groups):
    return [pl.BlockSpec((GROUP * size,), lambda b, c, g: (b * groups + g,), memory_space=pltpu.SMEM)
            for size in (INTS, FLOATS)]


def widened(pyramid, atlas):
    """The levels with columns of zeros up to a width that a copy into the atlas can have."""
    return [jnp.pad(level, ((0, 0), (0, 0), (0, width - level.shape[2]), (0, 0)))
            for level, width in zip(pyramid, atlas.padded)]


def _kernel(ints, floats, *refs, atlas, block):
    """A grid step: the items of a group of one image, `block` channels of them."""
    (*maps, out, held, semaphores), step = refs, pl.program_id(2)

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0) & (step == 0))
    def _():  # what no level covers is read with weight 0 and must not be nan
        fill_with_zeros(held)

    @pl.when(step == 0)
    def _():
        copies = [pltpu.make_async_copy(source, target, semaphores.at[k])
                  for k, (source, target) in enumerate(zip(level_slices(maps, block), atlas_slices(held, maps, atlas)))]
        for copy in copies:
            copy.start()
        for copy in copies:
            copy.wait()

    def pool(k, _):
        out[k] = _pooled(read_item(ints, floats, k), held, block).reshape(BINS, SLOTS, block).astype(out.dtype)
        return 0

    jax.lax.fori_loop(0, GROUP, pool, 0)


def fill_with_zeros(ref):
    def clear(row, _):
        ref[row] = jnp.zeros(ref.shape[1:], ref.dtype)
        return 0

    jax.lax.fori_loop(0, ref.shape[0], clear, 0)


def level_slices(maps, block):
    """This grid step's image and channels of each level."""
    image, channels = pl.program_id(0), pl.ds(pl.program_id(1) * block, block)
    return [level.at[image] if level.shape[-1] == block else level.at[image, :, :, channels] for level in maps]


def atlas_slices(held, maps, atlas):
    """The levels' places in the atlas `held`."""
    return [held.at[pl.ds(row, level.shape[1]), pl.ds(column, level.shape[2]), :]
            for level, (row, column) in zip(maps, atlas.places)]


def _pooled(item, held, block):
    """The crop `[56, block]` of an item, in float32; rows p * 8 + q."""
    shape = SLOTS, ROWS * COLUMNS
    bins = jax.lax.broadcasted_iota(jnp.int32, shape, 0).astype(jnp.float32)
    cell = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    row, column = (cell // COLUMNS).astype(jnp.float32), (cell % COLUMNS).astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST if held.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def strip(j, total):
        _, x, _, atlas_x = item.place(0, j)
        across = weight(bins, x.astype(jnp.float32) + column, *item.columns)

        def tile(i, total):
            y, _, atlas_y, _ = item.place(i, j)
            down = weight(bins, y.astype(jnp.float32) + row, *item.rows)
            weights = (down[:BINS, None, :] * across[None]).reshape(BINS * SLOTS, shape[1]).astype(held.dtype)
            cells = held[pl.ds(atlas_y, ROWS), pl.ds(pl.multiple_of(atlas_x, ALIGN), COLUMNS), :]
            return total + jnp.dot(weights, cells.reshape(shape[1], block), precision=exact,
                                   preferred_element_type=jnp.float32)

        return jax.lax.fori_loop(0, item.row_tiles, tile, total)

    return jax.lax.fori_loop(0, item.column_tiles, strip, jnp.zeros((BINS * SLOTS, block), jnp.float32))
