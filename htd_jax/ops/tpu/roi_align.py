"""RoIAlign on a TPU by windows: a Pallas kernel that holds an image's whole pyramid in vector memory.

The pyramid comes in once for each image (46 MB at 800x1344 in bfloat16), and every RoI reads from there the tiles of
8 x 32 cells that it needs, on the level it needs, as many as it takes. A tile adds `K (56 x 256) . F (256 x C)` to the
crop, where K is the outer product of the two axes' weights: one matrix product with float32 sums. The crops are written
bin by bin, `[7, 7, B, N, C]`: so the layers that follow read them, which would else be moved first.
"""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.tpu import group
from htd_jax.ops.tpu.atlas import (
    ALIGN,
    COLUMNS,
    FLOATS,
    GROUP,
    INTS,
    ROWS,
    atlas_of,
    channels_at_once,
    read_item,
    scalars_of,
)
from htd_jax.ops.tpu.group import CROP, SLOTS
from htd_jax.ops.windows import Items, weight

VECTOR_MEMORY = 128 * 2**20  # bytes, of v5e and v6e: assumed where no TPU is there to ask
COMPILERS = 4 * 2**20  # of it are left to the compiler
OTHERS = 10 * 2**20  # of it are for what is not the atlas


def fits(shapes, channels, dtype):
    """Whether levels of `shapes` (h, w) fit into the vector memory, and their sums in float32 too."""
    return all(block_of(atlas_of(shapes), channels, kind) for kind in (dtype, jnp.float32))


def block_of(atlas, channels, dtype):
    """Channels whose `atlas` is in vector memory at once; 0 if no number fits."""
    return channels_at_once(atlas, channels, dtype, _vector_memory() - COMPILERS - OTHERS)


def _vector_memory():
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # the program is traced where no TPU is
        return VECTOR_MEMORY


def compiler_options():
    return pltpu.CompilerParams(vmem_limit_bytes=_vector_memory() - COMPILERS)


def crops(pyramid: Sequence[Float[Array, "B _ _ C"]], parts: Sequence[Items],
          interpret: Any = False) -> list[Float[Array, "B _ 7 7 C"]]:
    """The crops of each of `parts` from a pyramid; 0 unless active. `interpret`: run on any device, slowly."""
    batch, channels, dtype = len(pyramid[0]), pyramid[0].shape[-1], pyramid[0].dtype
    atlas, groups = atlas_of([level.shape[1:3] for level in pyramid]), group.spans(parts)
    block = block_of(atlas, channels, dtype)
    by_bins = pl.pallas_call(
        functools.partial(_kernel, atlas=atlas, block=block, groups=groups),
        grid=(batch, channels // block, groups[-1].stop),
        out_shape=[jax.ShapeDtypeStruct((BINS, BINS, *part.levels.shape, channels), dtype) for part in parts],
        in_specs=[*scalar_specs(groups[-1].stop), *[pl.BlockSpec(memory_space=pl.ANY)] * len(pyramid)],
        out_specs=group.specs(groups, block),
        scratch_shapes=[pltpu.VMEM((atlas.height, atlas.width, block), dtype),
                        pltpu.SemaphoreType.DMA((len(pyramid),)), group.room(block),
                        *[pltpu.VMEM((*shape, block), dtype) for shape in atlas.shapes if shape[1] % ALIGN]],
        compiler_params=compiler_options(), interpret=interpret, name="roi_align_tiles",
    )(*scalars_of(group.joined(parts), atlas), *pyramid)
    return [crops.transpose(2, 3, 0, 1, 4) for crops in by_bins]


def scalar_specs(groups):
    return [pl.BlockSpec((GROUP * size,), lambda b, c, g: (b * groups + g,), memory_space=pltpu.SMEM)
            for size in (INTS, FLOATS)]


def _kernel(ints, floats, *refs, atlas, block, groups):
    """A grid step: the items of a group of one image, `block` channels of them."""
    levels, (image, part, step) = len(atlas.shapes), map(pl.program_id, range(3))
    maps, outs, (held, semaphores, pooled, *landing) = group.split(refs, levels, len(groups))

    @pl.when((image == 0) & (part == 0) & (step == 0))
    def _():  # what no level covers is read with weight 0 and must not be nan
        fill_with_zeros(held)

    @pl.when(step == 0)
    def _():
        _load(level_slices(maps, image, part, block), held, semaphores, landing, atlas)

    def pool(k, _):
        group.put(pooled, k, _pooled(read_item(ints, floats, k), held, block))
        return 0

    jax.lax.fori_loop(0, GROUP, pool, 0)
    for span, out in zip(groups, outs):
        pl.when((step >= span.start) & (step < span.stop))(functools.partial(group.to_bins, pooled, out))


def fill_with_zeros(ref):
    def clear(row, _):
        ref[row] = jnp.zeros(ref.shape[1:], ref.dtype)
        return 0

    jax.lax.fori_loop(0, ref.shape[0], clear, 0)


def level_slices(maps, image, part, block):
    """Of each level an image and the channels of a part."""
    channels = pl.ds(part * block, block)
    return [level.at[image] if level.shape[-1] == block else level.at[image, :, :, channels] for level in maps]


def _load(maps, held, semaphores, landing, atlas):
    """Brings the levels to their places in `held`: those whose width a copy cannot have by way of `landing`."""
    spare, copies = iter(landing), []
    for k, (level, (row, column)) in enumerate(zip(maps, atlas.places)):
        height, width, _ = level.shape
        direct = width % ALIGN == 0
        target = held.at[pl.ds(row, height), pl.ds(column, width), :] if direct else next(spare)
        copies.append(pltpu.make_async_copy(level, target, semaphores.at[k]))
        copies[-1].start()
    for copy in copies:
        copy.wait()
    indirect = [place for level, place in zip(maps, atlas.places) if level.shape[1] % ALIGN]
    for source, place in zip(landing, indirect):
        _move(source, held, place)


def _move(source, held, place):
    def move(row, _):
        held[place[0] + row, pl.ds(place[1], source.shape[1])] = source[row]
        return 0

    jax.lax.fori_loop(0, source.shape[0], move, 0)


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
            weights = (down[:BINS, None, :] * across[None]).reshape(CROP, shape[1]).astype(held.dtype)
            cells = held[pl.ds(atlas_y, ROWS), pl.ds(pl.multiple_of(atlas_x, ALIGN), COLUMNS), :]
            return total + jnp.dot(weights, cells.reshape(shape[1], block), precision=exact,
                                   preferred_element_type=jnp.float32)

        return jax.lax.fori_loop(0, item.row_tiles, tile, total)

    return jax.lax.fori_loop(0, item.column_tiles, strip, jnp.zeros((CROP, block), jnp.float32))
