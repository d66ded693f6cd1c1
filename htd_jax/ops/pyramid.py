"""RoIAlign on a feature pyramid: the level of each RoI, crops of its own level or of all, and where padded maps end."""
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.roi_align import roi_align

STRIDES = (4, 8, 16, 32)  # of P2..P5, in pixels
FINEST = 56  # a RoI of less than twice as many pixels (geometric mean of the sides) lies on P2

Pyramid = Sequence[Float[Array, "_ _ C"]]  # P2..P5 of one image


def roi_levels(rois: Float[Array, "N 4"]) -> Int[Array, "N"]:
    """Level of each RoI, 0 for P2: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..3."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, len(STRIDES) - 1).astype(jnp.int32)


def extend_edges(pyramid: Sequence[Float[Array, "B _ _ C"]],
                 padded: Int[Array, "B 2"]) -> list[Float[Array, "B _ _ C"]]:
    """P2..P5 of a batch whose cells just beyond `padded` repeat the last within.

    So a RoI at the edge of an image with more padding reads what the border rule would give it at the end of a map.
    """
    return [_extend_edge(_extend_edge(features, 1, padded[:, 0], stride), 2, padded[:, 1], stride)
            for features, stride in zip(pyramid, STRIDES)]


def _extend_edge(features, axis, end, stride):
    beyond = jnp.arange(features.shape[axis]) == -(-end[:, None] // stride)
    return _repeated(axis, features, jnp.expand_dims(beyond, (3 - axis, 3)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _repeated(axis, features, beyond):
    """`features` whose cells `beyond` the edge are what the ones before them along `axis` are."""
    return jnp.where(beyond, jnp.roll(features, 1, axis), features)


def _repeated_backward(axis, beyond, gradient):
    """In one pass over the map: derived from the above, it would be three, with copies of the map between them."""
    last = jnp.roll(beyond, -1, axis)
    return jnp.where(beyond, 0, gradient) + jnp.where(last, jnp.roll(gradient, -1, axis), 0), None


_repeated.defvjp(lambda axis, features, beyond: (_repeated(axis, features, beyond), beyond), _repeated_backward)


def crop_own_level(pyramid: Pyramid, rois: Float[Array, "N 4"]) -> Float[Array, "N 7 7 C"]:
    """Crops of `rois`, each from its own level."""
    levels = roi_levels(rois)
    crops = sum(roi_align(features, rois, stride, where=levels == k)
                for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))
    return jax.lax.optimization_barrier(crops)  # or XLA keeps all four terms until the backward pass


def crop_all_levels(pyramid: Pyramid, rois: Float[Array, "N 4"],
                    own: Float[Array, "N 7 7 C"]) -> Float[Array, "4 N 7 7 C"]:
    """Crops of `rois` from every level; `own`, of `crop_own_level`, is one of the four and not pooled again."""
    levels = roi_levels(rois)
    others = [roi_align(features, rois, stride, where=levels != k)
              for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    return _with_own(others, own, levels)


def crop_own_and_all_levels(pyramid: Pyramid, rois: Float[Array, "N 4"], where: Bool[Array, "P"]
                            ) -> tuple[Float[Array, "N 7 7 C"], Float[Array, "4 P 7 7 C"]]:
    """`crop_own_level` of all `rois`, and `crop_all_levels` of the first P, 0 on other levels unless `where`.

    As one call for each level, whose backward pass makes one gradient of its map in place of two.
    """
    levels, first = roi_levels(rois), slice(len(where))
    pooled = jnp.concatenate([rois, rois[first]])
    crops = [roi_align(features, pooled, stride, where=jnp.concatenate([levels == k, where & (levels[first] != k)]))
             for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    own = jax.lax.optimization_barrier(sum(part[:len(rois)] for part in crops))
    return own, _with_own([part[len(rois):] for part in crops], own[first], levels[first])


def _with_own(others, own, levels):
    """`[4, N, 7, 7, C]`: the crops of each level in `others`, but those that `own` holds."""
    on_level = lambda k: (levels == k)[:, None, None, None]
    return jnp.stack([jnp.where(on_level(k), own, part) for k, part in enumerate(others)])
