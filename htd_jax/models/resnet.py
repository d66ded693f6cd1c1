"""ResNet and ResNeXt backbones, C2..C5; a block's stride sits in its 3x3 convolution or, "caffe" style, before it."""
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from htd_jax.models.layers import (
    KAIMING_FAN_OUT,
    FrozenBatchNorm,
    clear_padding,
    conv,
    conv_norm,
    multiplied,
    norm,
    relu,
)
from htd_jax.ops.conv import conv as fast_gradient_conv
from htd_jax.ops.deform_conv import batch_deform_conv
from htd_jax.ops.few_images import conv_beside_gathers
from htd_jax.ops.stem_conv import stem_of_blocks

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)

Map = Float[Array, "B _ _ _"]
Padded = Int[Array, "B 2"] | None


class DeformConv(nnx.Module):
    """3x3 deformable convolution without bias; its offsets come from a plain 3x3 convolution that starts at zero."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int, dtype: DTypeLike | None,
                 rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(KAIMING_FAN_OUT(rngs.params(), (3, 3, inputs // groups, outputs)))
        self.offset = conv(inputs, 18, 3, stride=stride, init=nnx.initializers.zeros, operator=conv_beside_gathers,
                           dtype=dtype, rngs=rngs)
        self.stride, self.groups, self.dtype = stride, groups, dtype

    def __call__(self, x: Map, factor: Float[Array, "O"] | None = None) -> Map:
        kernel = multiplied(self.kernel[...], factor).astype(x.dtype)
        return batch_deform_conv(x, self.offset(x), kernel, stride=self.stride, groups=self.groups)


class Shortcut(nnx.Module):
    """The first block's shortcut: strided 1x1 convolution and norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, kind: str, operator: Callable,
                 dtype: DTypeLike | None, rngs: nnx.Rngs) -> None:
        self.conv = conv(inputs, outputs, 1, stride=stride, bias=False, init=KAIMING_FAN_OUT, operator=operator,
                         dtype=dtype, rngs=rngs)
        self.bn = norm(kind, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        return conv_norm(self.conv, self.bn, x)


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the outputs.

    `cell`: pixels of the image that a cell of the input stands for. `stride_in_1x1`: a bottleneck's stride sits in its
    first convolution.
    """

    def __init__(self, inputs: int, planes: int, inner: int, stride: int, cell: int, *, bottleneck: bool, groups: int,
                 deformable: bool, kind: str, dtype: DTypeLike | None, rngs: nnx.Rngs,
                 stride_in_1x1: bool = False) -> None:
        outputs = planes * 4 if bottleneck else planes
        make = dict(dtype=dtype, rngs=rngs)
        operator = conv_beside_gathers if deformable else fast_gradient_conv
        plain = lambda i, o, size, stride=1, groups=1: conv(
            i, o, size, stride=stride, groups=groups, bias=False, init=KAIMING_FAN_OUT, operator=operator, **make)
        spatial = (lambda i, o, stride: DeformConv(i, o, stride=stride, groups=groups, **make)) if deformable else (
            lambda i, o, stride: plain(i, o, 3, stride, groups))
        if bottleneck:
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1, self.conv2 = plain(inputs, inner, 1, first), spatial(inner, inner, second)
            self.conv3 = plain(inner, outputs, 1)
            self.bn1, self.bn2 = norm(kind, inner, **make), norm(kind, inner, **make)
            self.bn3 = norm(kind, outputs, zero=True, **make)
        else:
            self.conv1, self.conv2 = spatial(inputs, planes, stride), plain(planes, outputs, 3)
            self.bn1, self.bn2 = norm(kind, planes, **make), norm(kind, outputs, zero=True, **make)
        self.bottleneck, self.cell, self.stride, self.stride_in_1x1 = bottleneck, cell, stride, stride_in_1x1
        self.downsample = (Shortcut(inputs, outputs, stride, kind=kind, operator=operator, **make)
                           if stride != 1 or inputs != outputs else None)

    def __call__(self, x: Map, padded: Padded = None) -> Map:
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.bottleneck:
            cell = self.cell * self.stride if self.stride_in_1x1 else self.cell
            y = clear_padding(relu(conv_norm(self.conv1, self.bn1, x)), padded, cell)
            y = relu(conv_norm(self.conv2, self.bn2, y))
            y = conv_norm(self.conv3, self.bn3, y)
        else:
            y = relu(conv_norm(self.conv1, self.bn1, clear_padding(x, padded, self.cell)))
            y = conv_norm(self.conv2, self.bn2, clear_padding(y, padded, self.cell * self.stride))
        return relu(y + shortcut)


class Stem(nnx.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pooling of stride 2."""

    def __init__(self, width: int, *, kind: str, dtype: DTypeLike | None, rngs: nnx.Rngs) -> None:
        self.conv1 = conv(3, width, 7, stride=2, bias=False, init=KAIMING_FAN_OUT, dtype=dtype, rngs=rngs)
        self.bn1 = norm(kind, width, dtype=dtype, rngs=rngs)

    def __call__(self, images: Map, padded: Padded = None) -> Map:
        if not isinstance(self.bn1, FrozenBatchNorm):
            return self.by_cells(images, padded)
        factor, offset = self.bn1.line()
        by_blocks = lambda images: stem_of_blocks(images, multiplied(self.conv1.kernel[...], factor), offset, padded)
        return jax.lax.platform_dependent(images, tpu=by_blocks, default=lambda images: self.by_cells(images, padded))

    def by_cells(self, images: Map, padded: Padded) -> Map:
        """The plain form."""
        x = relu(conv_norm(self.conv1, self.bn1, images))
        return max_pool_3x3(clear_padding(x, padded, stride=2))  # 0 is as good as minus infinity: nothing is below it


class Layer(nnx.List):
    """The blocks of one of the four stages (`layer1`..`layer4` in checkpoints)."""

    def __call__(self, x: Map, padded: Padded = None, remat: bool = False) -> Map:
        if remat:
            return recomputed(self, x, padded)
        for block in self:
            x = block(x, padded)
        return x


class ResNet(nnx.Module):
    """Images -> C2..C5, of strides 4, 8, 16, 32; `channels`: of each.

    `groups` and `base_width` make a ResNeXt (64 and 4: 64x4d); `deformable` replaces the 3x3 convolutions of
    layer2..4; `stride_in_1x1` suits "caffe" weights. Nothing is learnt, or propagated, below the first `frozen_stages`
    layers (the stem included).
    Within `padded` the maps are what they would be if the images ended there, but for group norm.
    """

    def __init__(self, depth: int, *, width: int = 64, groups: int = 1, base_width: int = 64, deformable: bool = False,
                 kind: str = "frozen_bn", frozen_stages: int = 1, dtype: DTypeLike | None = None,
                 stride_in_1x1: bool = False, rngs: nnx.Rngs) -> None:
        bottleneck = depth in BOTTLENECK_DEPTHS
        self.frozen_stages, self.dtype = frozen_stages, dtype
        expansion = 4 if bottleneck else 1
        self.channels = tuple(width * 2**stage * expansion for stage in range(4))

        def layer(stage):
            planes = width * 2**stage
            inputs, outputs = self.channels[stage - 1] if stage else width, self.channels[stage]
            inner = planes * base_width // 64 * groups
            block = functools.partial(Block, planes=planes, inner=inner, bottleneck=bottleneck, groups=groups,
                                      deformable=deformable and stage > 0, kind=kind, dtype=dtype, rngs=rngs,
                                      stride_in_1x1=stride_in_1x1)
            cell, stride = 4 * 2**stage, 2 if stage else 1
            return Layer([block(inputs, stride=stride, cell=cell // stride),
                          *(block(outputs, stride=1, cell=cell) for _ in range(BLOCKS[depth][stage] - 1))])

        self.stem = Stem(width, kind=kind, dtype=dtype, rngs=rngs)
        self.layer1, self.layer2, self.layer3, self.layer4 = map(layer, range(4))

    def __call__(self, images: Map, padded: Padded = None, remat: bool = False) -> list[Map]:
        x = self.stem(images.astype(self.dtype or images.dtype), padded)
        if self.frozen_stages > 0:
            x = jax.lax.stop_gradient(x)
        outputs = []
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            x = layer(x, padded, remat)
            if number <= self.frozen_stages:
                x = jax.lax.optimization_barrier(jax.lax.stop_gradient(x))  # or XLA keeps what it needs to recompute x
            outputs.append(x)
        return outputs


def recomputed(blocks: Sequence[Block], x: Map, padded: Padded) -> Map:
    """A layer's `blocks`, of which the backward pass keeps the inputs alone and recomputes the rest.

    All blocks but the first are equal, so they are one loop over their stacked parameters: the compiler, which takes
    15 to 25 s for one deformable block on a TPU, meets the 22 of ResNet-101 once.
    """
    first, *others = blocks
    x = nnx.remat(Block.__call__)(first, x, padded)
    if not others:
        return x
    graphdefs, states = zip(*map(nnx.split, others))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    advance = jax.checkpoint(lambda x, state: nnx.merge(graphdefs[0], state)(x, padded))
    return jax.lax.scan(lambda x, state: (advance(x, state), None), x, stacked)[0]


def max_pool_3x3(x: Map) -> Map:
    """3x3 max pooling of stride 2 with a border of minus infinity."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
