"""RoI crops as matrix products of a whole map with the weights of its two axes, and the gradient of the map.

The form of RoIAlign that runs on any device.
"""
import jax
import jax.numpy as jnp

BINS = 7  # of a crop, along each axis
CHUNK = 128  # RoIs whose half-contracted crops are in memory at once


def by_products(features, wy, wx):
    """For accelerators: whole maps, `CHUNK` RoIs at a time."""
    count = wy.shape[0]
    if count <= CHUNK:
        return contract(features, wy, wx)
    pad = -count % CHUNK
    split = lambda w: jnp.pad(w, ((0, pad), (0, 0), (0, 0))).reshape(-1, CHUNK, *w.shape[1:])
    crops = jax.lax.map(lambda w: contract(features, *w), (split(wy), split(wx)))
    return crops.reshape(-1, *crops.shape[2:])[:count]


def products_backward(gradient, wy, wx):
    return transposed(lambda features: by_products(features, wy, wx), gradient, wy, wx)


def transposed(crop, gradient, wy, wx):
    """What the linear `crop` makes of the features `[H, W, C]`, backwards."""
    shape = wy.shape[-1], wx.shape[-1], gradient.shape[-1]
    return jax.linear_transpose(crop, jax.ShapeDtypeStruct(shape, gradient.dtype))(gradient)[0]


def contract(features, wy, wx):
    """The longer axis first: that leaves the smaller intermediate."""
    if features.shape[0] > features.shape[1]:
        return rows_first(features, wy, wx)
    return jnp.einsum("nph,nqhc->npqc", wy, jnp.einsum("nqw,hwc->nqhc", wx, features))


def rows_first(features, wy, wx):
    return jnp.einsum("npwc,nqw->npqc", jnp.einsum("nph,hwc->npwc", wy, features), wx)
