"""HTD: how the parts fit together, and which of their parameters are trained."""
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict

from htd_jax.models.ba import BA
from htd_jax.models.fpn import FPN
from htd_jax.models.layers import inside
from htd_jax.models.pgraph import PGraph
from htd_jax.models.resnet import ResNet
from htd_jax.models.rpn import RPNHead
from htd_jax.models.sfa import SFA
from htd_jax.models.stage0 import Stage0
from htd_jax.ops.pyramid_crops import extend_edges

MEAN = (123.675, 116.28, 103.53)  # of RGB pixels 0..255, with STD: ImageNet's
STD = (58.395, 57.12, 57.375)


class HTD(nnx.Module):
    """The whole detector. Its two uses are pure functions: `losses.losses` and `detect.detect`."""

    def __init__(self, settings: ConfigDict, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> None:
        make = dict(dtype=dtype, rngs=rngs)
        channels, classes = settings.fpn_channels, settings.num_classes
        self.backbone = ResNet(settings.depth, width=settings.width, groups=settings.groups,
                               base_width=settings.base_width, deformable=settings.deformable, kind=settings.norm,
                               frozen_stages=settings.frozen_stages, stride_in_1x1=settings.stride_in_1x1, **make)
        self.neck = FPN(self.backbone.channels, channels, **make)
        self.rpn = RPNHead(channels, **make)
        self.sfa = SFA(channels, classes, **make)
        self.stage0 = Stage0(channels, settings.fc_channels, classes, **make)
        self.pgraph = PGraph(channels, settings.fc_channels, classes, **make)
        self.ba = BA(channels, settings.ba_channels, settings.ba_out_channels, settings.ba_groups, **make)
        self.num_classes = classes
        self.roi_align = settings.roi_align  # the form of RoIAlign, of `pyramid_crops.FORMS`

    def features(self, images: Float[Array, "B H W 3"], padded: Int[Array, "B 2"],
                 remat: bool = False) -> list[Float[Array, "B _ _ C"]]:
        """P2..P6 of normalised images.

        Where images have more padding than `padded`, the maps are within it what they would be if the images ended
        there; the cells just beyond are what RoIAlign reads there, and others mean nothing.
        """
        graphdef, state = nnx.split(self.neck)
        whole = lambda state, maps: nnx.merge(graphdef, state)(maps, padded)
        # Recomputing FPN's sums is 3 % of a training step on accelerators, and spares some of the largest maps.
        pyramid = jax.lax.platform_dependent(state, self.backbone(images, padded, remat), cpu=jax.checkpoint(whole),
                                             default=jax.checkpoint(whole) if remat else whole)
        return [*extend_edges(pyramid[:-1], padded), pyramid[-1]]


def build(settings: ConfigDict, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> HTD:
    """An `HTD` from `config.model`, freshly initialised; `dtype` is what it computes in, parameters are float32."""
    return HTD(settings, dtype=dtype, rngs=rngs)


def trainable(settings: ConfigDict) -> Callable:
    """NNX filter for the parameters that training updates: all but stem and the first `frozen_stages` layers."""
    frozen = {"stem"} if settings.frozen_stages > 0 else set()
    frozen |= {f"layer{k}" for k in range(1, settings.frozen_stages + 1)}

    def learns(path, value):
        return issubclass(value.type, nnx.Param) and not (path[0] == "backbone" and path[1] in frozen)

    return learns


def normalise(images: Shaped[Array, "B H W 3"], size: Int[Array, "B 2"]) -> Float[Array, "B H W 3"]:
    """Float32 images, zero outside `size`, from RGB uint8; floats pass as they are."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    mean, std = (jnp.array(values)[None, None, None] for values in (MEAN, STD))
    return jnp.where(inside(images.shape[1:3], size), (images.astype(jnp.float32) - mean) * (1 / std), 0)


def matmul_precision(dtype: str) -> AbstractContextManager:
    """The precision that keeps float32 what it says on accelerators, whose default multiplies in fewer bits."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else "default")
