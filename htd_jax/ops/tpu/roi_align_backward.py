"""The gradient of `tpu.roi_align`: an image's pyramid of sums in float32, in vector memory, 128 channels at a time.

Items come one after another and add `K^T (256 x 56) . G (56 x C)` to each tile they read: the order is always the same,
and so is the result.
"""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from htd_jax.ops.tpu import group
from htd_jax.ops.tpu.atlas import ALIGN, COLUMNS, GROUP, ROWS, atlas_of, read_item, scalars_of
from htd_jax.ops.tpu.group import CROP, SLOTS
from htd_jax.ops.tpu.roi_align import (
    block_of,
    compiler_options,
    fill_with_zeros,
    level_slices,
    scalar_specs,
)
from htd_jax.ops.windows import Items, weight

STAGED = 2  # rows on their way out


def gradients(crops: Sequence[Float[Array, "B _ 7 7 C"]], parts: Sequence[Items], shapes: Sequence[tuple[int, int]],
              interpret: Any = False) -> Sequence[Float[Array, "B _ _ C"]]:
    """Gradients of the levels of `shapes` (h, w) from those of the crops of each of `parts`."""
    batch, channels, dtype = len(crops[0]), crops[0].shape[-1], crops[0].dtype
    atlas, groups = atlas_of(shapes), group.spans(parts)
    block = block_of(atlas, channels, jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, atlas=atlas, block=block, groups=groups),
        grid=(batch, channels // block, groups[-1].stop),
        out_shape=[jax.ShapeDtypeStruct((batch, *shape, channels), dtype) for shape in shapes],
        in_specs=[*scalar_specs(groups[-1].stop), *group.specs(groups, block)],
        out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * len(shapes),
        scratch_shapes=[pltpu.VMEM((atlas.height, atlas.width, block), jnp.float32),
                        pltpu.SemaphoreType.DMA((STAGED,)), group.room(block),
                        *[pltpu.VMEM((STAGED, width, block), dtype) for _, width in shapes]],
        compiler_params=compiler_options(), interpret=interpret, name="roi_align_tiles_backward",
    )(*scalars_of(group.joined(parts), atlas), *[part.transpose(2, 3, 0, 1, 4) for part in crops])


def _kernel(ints, floats, *refs, atlas, block, groups):
    levels, (image, part, step) = len(atlas.shapes), map(pl.program_id, range(3))
    gradients, maps, (sums, semaphores, crops, *staged) = group.split(refs, len(groups), levels)

    @pl.when(step == 0)
    def _():
        fill_with_zeros(sums)
        crops[...] = jnp.zeros_like(crops)  # rows of no bin are read too

    for span, gradient in zip(groups, gradients):
        pl.when((step >= span.start) & (step < span.stop))(functools.partial(group.from_bins, gradient, crops))

    def add(k, _):
        _add(read_item(ints, floats, k), group.take(crops, k, block).astype(gradients[0].dtype), sums)
        return 0

    jax.lax.fori_loop(0, GROUP, add, 0)

    @pl.when(step == groups[-1].stop - 1)
    def _():
        for level, place, rows in zip(level_slices(maps, image, part, block), atlas.places, staged):
            _send(sums, place, level, rows, semaphores)


def _add(item, gradient, sums):
    """Adds what an item with `gradient [56, block]` of its crop gives to the cells it reads."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (COLUMNS, CROP), 1)
    row_bin, column_bin = (lane // SLOTS).astype(jnp.float32), (lane % SLOTS).astype(jnp.float32)
    cell = jax.lax.broadcasted_iota(jnp.int32, lane.shape, 0).astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST if gradient.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def strip(j, _):
        _, x, _, atlas_x = item.place(0, j)
        across = weight(column_bin, x.astype(jnp.float32) + cell, *item.columns)

        def tile(i, _):
            y, _, atlas_y, _ = item.place(i, j)
            down = weight(row_bin[:ROWS], y.astype(jnp.float32) + cell[:ROWS], *item.rows)
            weights = (down[:, None, :] * across[None]).reshape(ROWS * COLUMNS, CROP).astype(gradient.dtype)
            here = pl.ds(atlas_y, ROWS), pl.ds(pl.multiple_of(atlas_x, ALIGN), COLUMNS), slice(None)
            more = jnp.dot(weights, gradient, precision=exact, preferred_element_type=jnp.float32)
            sums[here] += more.reshape(ROWS, COLUMNS, -1)
            return 0

        return jax.lax.fori_loop(0, item.row_tiles, tile, 0)

    jax.lax.fori_loop(0, item.column_tiles, strip, 0)


def _send(sums, place, level, staged, semaphores):
    """Copies a level out of the atlas `sums`, row by row, in the gradient's dtype."""
    height, width, _ = level.shape
    copy = lambda row, slot: pltpu.make_async_copy(staged.at[slot], level.at[row], semaphores.at[slot])

    def send(row, _):
        slot = row % STAGED

        @pl.when(row >= STAGED)
        def _():
            copy(row - STAGED, slot).wait()

        staged[slot] = sums[place[0] + row, place[1]:place[1] + width].astype(staged.dtype)
        copy(row, slot).start()
        return 0

    jax.lax.fori_loop(0, height, send, 0)
    for row in range(max(height - STAGED, 0), height):
        copy(row, row % STAGED).wait()
