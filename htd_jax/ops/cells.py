"""The 3x3 cells about chosen cells of a pyramid, for accelerators: as rows of a matrix of each level's cells.

A row costs them some ten cycles; a window cut out of a map, as a CPU likes it, a thousand.
"""
import jax
import jax.numpy as jnp

TAPS = 9


@jax.custom_vjp
def surrounding_rows(pyramid, cells):
    """The 3x3 cells `[B, N, 9 * C]` about `cells [B, N]`, indices among those of all levels, each `[B, H, W, C]`.

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
    """Adds up in float32, by rising index: XLA would sort all images' indices at once, and compile that for long."""
    like, cells = inputs
    batch, count = cells.shape
    order = jnp.argsort(_tap_positions(cells, _shapes(like)).reshape(batch, -1), axis=1)
    rows = gradient.reshape(batch, count * TAPS, -1)
    rows = jnp.take_along_axis(rows, order[..., None], axis=1, mode="clip").astype(jnp.float32)
    places = _places(cells, _shapes(like), order)
    return [_summed(rows, *place, features) for features, place in zip(like, places)], None


surrounding_rows.defvjp(_forward, _backward)


def _summed(rows, index, here, like):
    """`[B, H, W, C]`: the sum of the `rows [B, K, C]` that are `here` at each `index [B, K]`, which rises."""
    batch, (_, *shape) = len(rows), like.shape
    flat = jnp.zeros((batch * shape[0] * shape[1], shape[2]), jnp.float32)
    rows = jnp.where(here[..., None], rows, 0).reshape(-1, shape[2])
    flat = flat.at[index.ravel()].add(rows, mode="drop", indices_are_sorted=True)
    return flat.reshape(batch, *shape).astype(like.dtype)


def _shapes(pyramid):
    return [features.shape[1:3] for features in pyramid]


def _tap_positions(cells, shapes):
    """Index `[B, N, 9]` of each cell about `cells [B, N]` among those of all levels of an image."""
    positions, start = 0, 0
    taps = jnp.arange(TAPS)[None, None, :]
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
