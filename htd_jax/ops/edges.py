"""Maps continued by one row and one column where they end within a larger array, in each platform's best form."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Map = Float[Array, "B H W C"]
Ends = Int[Array, "B 2"]  # rows and columns of a map that are within


@jax.custom_vjp
def extended(features: Map, ends: Ends) -> Map:
    """`features` whose row and column just beyond `ends` repeat the last within."""
    return jax.lax.platform_dependent(features, ends, tpu=extend_in_place, default=extend_in_passes)


def _backward(ends, gradient):
    return jax.lax.platform_dependent(gradient, ends, tpu=in_place_backward, default=in_passes_backward), None


extended.defvjp(lambda features, ends: (extended(features, ends), ends), _backward)


def extend_in_passes(features: Map, ends: Ends) -> Map:
    """A pass over the map for each axis."""
    for axis, here in _beyond(features, ends):
        features = jnp.where(here, jnp.roll(features, 1, axis), features)
    return features


def in_passes_backward(gradient: Map, ends: Ends) -> Map:
    """One pass for each axis: derived from the above, it would be three, with copies of the map between them."""
    for axis, here in reversed(_beyond(gradient, ends)):
        before = jnp.roll(here, -1, axis)
        gradient = jnp.where(here, 0, gradient) + jnp.where(before, jnp.roll(gradient, -1, axis), 0)
    return gradient


def _beyond(features, ends):
    """For each axis of a map: whether a cell is the first beyond its end, `[B, H, 1, 1]` and `[B, 1, W, 1]`."""
    return [(axis, jnp.expand_dims(jnp.arange(features.shape[axis])[None] == ends[:, axis - 1, None], (3 - axis, 3)))
            for axis in (1, 2)]


def extend_in_place(features: Map, ends: Ends) -> Map:
    """Image by image the row and the column alone: for a TPU, which pays a pass by the size of the map."""
    def repeat(features, last, beyond, shape):
        return jax.lax.dynamic_update_slice(features, jax.lax.dynamic_slice(features, last, shape), beyond)

    return _edge_by_edge(repeat, (1, 2), features, ends)


def in_place_backward(gradient: Map, ends: Ends) -> Map:
    """The gradient of `extend_in_place`."""
    def move(gradient, last, beyond, shape):
        within, moved = (jax.lax.dynamic_slice(gradient, start, shape) for start in (last, beyond))
        there = jnp.stack(last) != jnp.stack(beyond)
        # Both are read before either place is written, or the whole gradient would be copied.
        total = jax.lax.optimization_barrier(within + jnp.where(there.any(), moved, 0))
        gradient = jax.lax.dynamic_update_slice(gradient, jnp.zeros_like(total), beyond)
        return jax.lax.dynamic_update_slice(gradient, total, last)

    return _edge_by_edge(move, (2, 1), gradient, ends)


def _edge_by_edge(change, axes, features, ends):
    """`features` after change(features, last, beyond, shape) for each image and axis: where the last row or column
    within starts, where the one beyond, and their shape. Both are the last of all where the map ends with its array."""
    def of_image(image, features):
        image = image.astype(ends.dtype)
        for axis in axes:
            size, end = features.shape[axis], ends[image, axis - 1]
            shape = tuple(1 if k in (0, axis) else length for k, length in enumerate(features.shape))
            last, beyond = (tuple(image if k == 0 else place if k == axis else jnp.zeros_like(image) for k in range(4))
                            for place in (jnp.minimum(end - 1, size - 1), jnp.minimum(end, size - 1)))
            features = change(features, last, beyond, shape)
        return features

    return jax.lax.fori_loop(0, len(features), of_image, features)
