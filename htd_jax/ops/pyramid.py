"""RoIAlign on a feature pyramid: the level of each RoI, crops of its own level or of all, and where padded maps end."""
import jax
import jax.numpy as jnp

from htd_jax.ops.edges import extended
from htd_jax.ops.roi_align import roi_align

STRIDES = (4, 8, 16, 32)  # of P2..P5, in pixels
FINEST = 56  # a RoI of this many pixels or less (geometric mean of the sides, up to twice it) lies on P2


def roi_levels(rois, levels=len(STRIDES)):
    """Level int32 `[N]` of each RoI `[N, 4]`: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..levels-1."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, levels - 1).astype(jnp.int32)


def extend_edges(pyramid, padded):
    """P2..P5 (each `[B, H, W, C]`) whose cells just beyond `padded [B, 2]` (h, w in pixels) repeat the last within.

    So a RoI at the edge of an image with more padding reads what the border rule would give it at the end of a map.
    """
    return [extended(features, -(-padded // stride)) for features, stride in zip(pyramid, STRIDES)]


def crop_own_level(pyramid, rois):
    """Crops `[N, 7, 7, C]` of `rois [N, 4]`, each from its own level of `pyramid` (P2..P5, each `[H, W, C]`)."""
    levels = roi_levels(rois)
    crops = sum(roi_align(features, rois, stride, where=levels == k)
                for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))
    return jax.lax.optimization_barrier(crops)  # or all four terms are held until the backward pass


def crop_all_levels(pyramid, rois, own):
    """Crops `[4, N, 7, 7, C]` of `rois [N, 4]` from every level of `pyramid` (P2..P5).

    `own [N, 7, 7, C]` is what `crop_own_level` gives: one of the four, which is not pooled again.
    """
    levels = roi_levels(rois)
    others = [roi_align(features, rois, stride, where=levels != k)
              for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    return _with_own(others, own, levels)


def crop_own_and_all_levels(pyramid, rois, where):
    """`crop_own_level` of `rois [N, 4]`, and `crop_all_levels` of the first P where `where` bool [P] (else 0 but for the own).

    As one call for each level, whose backward pass makes one gradient of its map in place of two.
    """
    levels, first = roi_levels(rois), slice(len(where))
    both = jnp.concatenate([rois, rois[first]])
    crops = [roi_align(features, both, stride, where=jnp.concatenate([levels == k, where & (levels[first] != k)]))
             for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
    own = jax.lax.optimization_barrier(sum(part[:len(rois)] for part in crops))
    return own, _with_own([part[len(rois):] for part in crops], own[first], levels[first])


def _with_own(others, own, levels):
    """`[4, N, 7, 7, C]`: the crops of each level in `others`, but those that `own` holds."""
    here = lambda k: (levels == k)[:, None, None, None]
    return jnp.stack([jnp.where(here(k), own, part) for k, part in enumerate(others)])
