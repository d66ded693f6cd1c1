"""RoI crops as matrix products of a whole map with the weights of its two axes, and the gradient of the map.

The form of RoIAlign that runs on any device.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BINS = 7  # of a crop, along each axis
CHUNK = 128  # RoIs whose half-contracted crops are in memory at once

Map, Crops = Float[Array, "H W C"], Float[Array, "N 7 7 C"]
RowWeights, ColumnWeights = Float[Array, "N 7 H"], Float[Array, "N 7 W"]  # of each cell in each bin of a RoI


def by_products(features: Map, wy: RowWeights, wx: ColumnWeights) -> Crops:
    """For accelerators: whole maps, `CHUNK` RoIs at a time."""
    count = wy.shape[0]
    if count <= CHUNK:
        return contract(features, wy, wx)
    pad = -count % CHUNK
    split = lambda w: jnp.pad(w, ((0, pad), (0, 0), (0, 0))).reshape(-1, CHUNK, *w.shape[1:])
    crops = jax.lax.map(lambda w: contract(features, *w), (split(wy), split(wx)))
    return crops.reshape(-1, *crops.shape[2:])[:count]


def products_backward(gradient: Crops, wy: RowWeights, wx: ColumnWeights) -> Map:
    """The gradient of the features of `by_products`."""
    return transposed(lambda features: by_products(features, wy, wx), gradient, wy, wx)


def transposed(crop: Callable, gradient: Crops, wy: RowWeights, wx: ColumnWeights) -> Map:
    """The gradient of the features of `crop`, which is linear in them."""
    shape = wy.shape[-1], wx.shape[-1], gradient.shape[-1]
    return jax.linear_transpose(crop, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


def contract(features: Map, wy: RowWeights, wx: ColumnWeights) -> Crops:
    """The longer axis first: that leaves the smaller intermediate."""
    if features.shape[0] > features.shape[1]:
        return rows_first(features, wy, wx)
    return jnp.einsum("nph,nqhc->npqc", wy, jnp.einsum("nqw,hwc->nqhc", wx, features))


def rows_first(features: Map, wy: RowWeights, wx: ColumnWeights) -> Crops:
    """The rows contracted first, then the columns."""
    return jnp.einsum("npwc,nqw->npqc", jnp.einsum("nph,hwc->npwc", wy, features), wx)
