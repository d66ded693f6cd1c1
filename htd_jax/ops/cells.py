"""The 3x3 cells about chosen cells of a pyramid, for accelerators: as rows of a matrix of each level's cells.

A row costs them some ten cycles; a window cut out of a map, as a CPU likes it, a thousand.
"""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TAPS = 9


@jax.custom_vjp
def surrounding_rows(pyramid: Sequence[Float[Array, "B _ _ C"]], cells: Int[Array, "B N"]) -> Float[Array, "B N _"]:
    """The 3x3 cells about `cells`, indices among those of all levels, as rows of 9 * C.

    Right for cells that are not at a border; for others, it reads a cell of the map in place of one beyond it.
    """
    found = 0
    for features, (index, here) in zip(pyramid, _places(cells, _shapes(pyramid))):
        rows = jnp.take(features.reshape(-1, features.shape[-1]), index, axis=0, mode="clip")
        found += jnp.where(here[..., None], rows, 0)
    return found.reshape(*cells.shape, -1)


def _forward(pyramid, cells):
    like = [features[:0] for features in pyramid]  # an array, not a shape, is what a backward pass may be given
    return surrounding_rows(pyramid, cells), (like, cells)


def _backward(inputs, gradient):
    """Adds up in float32, by rising index: XLA sorts indices not known to be sorted, of all images at once."""
    like, cells = inputs
    batch, count = cells.shape
    positions = _tap_positions(cells, _shapes(like)).reshape(batch, -1)
    order = jnp.argsort(positions, axis=1)
    rows = gradient.reshape(batch, count * TAPS, -1)
    rows = jnp.take_along_axis(rows, order[..., None], axis=1, mode="clip")
    sums = _sums_of_equals(rows, jnp.take_along_axis(positions, order, axis=1, mode="clip"))
    places = _places(cells, _shapes(like), order)
    return [_scattered(sums, *place, features) for features, place in zip(like, places)], None


surrounding_rows.defvjp(_forward, _backward)


def _sums_of_equals(rows, positions):
    """`rows [B, K, C]` whose first of each run of equal `positions [B, K]` has the run's sum, and the others 0.

    So that maps need not be summed in float32, which would take as long as to convert them.
    """
    batch, count, channels = rows.shape
    first = jnp.diff(positions, axis=1, prepend=-1) != 0
    run = jnp.cumsum(first.ravel()) - 1
    sums = jnp.zeros((batch * count, channels), jnp.float32)
    sums = sums.at[run].add(rows.reshape(-1, channels).astype(jnp.float32), mode="drop", indices_are_sorted=True)
    sums = jnp.take(sums.astype(rows.dtype), run, axis=0, mode="clip").reshape(rows.shape)
    return jnp.where(first[..., None], sums, 0)


def _scattered(rows, index, here, like):
    """`[B, H, W, C]`: the `rows [B, K, C]` that are `here`, added where `index [B, K]`, which rises, has them."""
    batch, (_, *shape) = len(rows), like.shape
    flat = jnp.zeros((batch * shape[0] * shape[1], shape[2]), rows.dtype)
    rows = jnp.where(here[..., None], rows, 0).reshape(-1, shape[2])
    flat = flat.at[index.ravel()].add(rows, mode="drop", indices_are_sorted=True)
    return flat.reshape(batch, *shape).astype(like.dtype)


def _shapes(pyramid):
    return [features.shape[1:3] for features in pyramid]


def _tap_positions(cells, shapes):
    """Index `[B, N, 9]` of each cell about `cells [B, N]` among those of all levels of an image."""
    positions, start, taps = 0, 0, jnp.arange(TAPS)[None, None]
    for height, width in shapes:
        cell = cells - start
        y = jnp.clip((cell // width)[..., None] + taps // 3 - 1, 0, height - 1)
        x = jnp.clip((cell % width)[..., None] + taps % 3 - 1, 0, width - 1)
        here = (cell >= 0) & (cell < height * width)
        positions += jnp.where(here[..., None], start + y * width + x, 0)
        start += height * width
    return positions


def _places(cells, shapes, order=None):
    """Of each level: index `[B, K]` of the taps' rows among those of the batch, and whether they lie on this level.

    Those of other levels have the first or last row of their image, so that a sorted `order` of taps stays one.
    """
    positions = _tap_positions(cells, shapes).reshape(len(cells), -1)
    positions = positions if order is None else jnp.take_along_axis(positions, order, axis=1, mode="clip")
    start, image = 0, jnp.arange(len(cells))[:, None]
    for height, width in shapes:
        size = height * width
        here = (positions >= start) & (positions < start + size)
        yield image * size + jnp.clip(positions - start, 0, size - 1), here
        start += size
