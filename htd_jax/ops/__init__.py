"""Operators: pure functions on the arrays of one image. They know nothing of modules, files or configs.

The names of axes and arrays are those of `htd_jax.models`, without the axis of images. What is listed here is for use
from outside too (docs/operators.md), and takes numpy's arrays as well as JAX's. Of these names, `roi_align`, `nms`,
`soft_nms` and `deform_conv` hide their files.
"""
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from htd_jax.ops.anchors import grid_anchors, level_anchors
from htd_jax.ops.boxes import areas, clip, decode, encode, flip, intersections, pairwise_iou
from htd_jax.ops.deform_conv import deform_conv
from htd_jax.ops.matching import assign_anchors, assign_proposals
from htd_jax.ops.nms import Detections, multiclass_nms, nms
from htd_jax.ops.roi_align import roi_align
from htd_jax.ops.sampling import Sample, sample
from htd_jax.ops.soft_nms import soft_nms

__all__ = [
    "Detections", "Sample", "areas", "assign_anchors", "assign_proposals", "clip", "decode", "deform_conv", "encode",
    "flip", "grid_anchors", "intersections", "level_anchors", "multiclass_nms", "nms", "pairwise_iou", "roi_align",
    "sample", "soft_nms",
]


def _takes_numpy(operator: Callable) -> Callable:
    """The operator, whose numpy arrays become JAX's: a numpy array knows no traced index, and keeps float64."""
    to_jax = lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x

    @functools.wraps(operator)
    def converting(*args, **kwargs):
        return operator(*map(to_jax, args), **{name: to_jax(value) for name, value in kwargs.items()})

    return converting


for _name in set(__all__) - {"Detections", "Sample", "grid_anchors", "level_anchors"}:  # these take no arrays
    globals()[_name] = _takes_numpy(globals()[_name])
