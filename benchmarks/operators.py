"""Each operator on the shapes of an 800 x 1344 image, beside PyTorch's or torchvision's where there is one."""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs, timing, yardsticks
from benchmarks.table import Row
from htd_jax.ops.anchors import grid_anchors
from htd_jax.ops.crop_products import BINS
from htd_jax.ops.deform_conv import deform_conv
from htd_jax.ops.matching import assign_anchors
from htd_jax.ops.nms import multiclass_nms, nms
from htd_jax.ops.pyramid_crops import STRIDES, crop_all_levels, crop_own_level, roi_levels
from htd_jax.ops.soft_nms import soft_nms


class Sizes(NamedTuple):
    """How large everything is: `image` (h, w), numbers of RoIs, of RPN candidates a level, of classes and boxes."""

    image: tuple = (800, 1344)
    channels: int = 256
    rois: int = 1000
    candidates: int = 2000
    classes: int = 80
    truths: int = 20


class Operator(NamedTuple):
    """`function(*arguments)` beside `yardstick()`, which is called `name` (None: there is none)."""

    what: str
    function: Callable
    arguments: tuple
    name: str = "-"
    yardstick: Callable | None = None


def rows(sizes=None, repeats=10):
    """A `Row` for each operator, in float32 on a CPU and bfloat16 elsewhere."""
    return [row(operator, repeats) for operator in operators(sizes or Sizes())]


def row(operator, repeats):
    """Measures an operator and its yardstick in turns."""
    ours = timing.compiled(operator.function, *operator.arguments)
    calls = {"ours": ours.call} | ({"yardstick": operator.yardstick} if operator.yardstick else {})
    measured = timing.times(calls, repeats)
    return Row(operator.what, measured["ours"], compile_seconds=ours.seconds, memory=ours.memory, flops=ours.flops,
               yardstick=operator.name if operator.yardstick else "-", yardstick_times=measured.get("yardstick"))


def operators(sizes):
    """All operators, with freshly drawn inputs for each."""
    makers = roi_align_own, roi_align_all, rpn_nms, class_nms, class_soft_nms, deformable, top_k, assignment
    return [make(sizes, np.random.default_rng(0)) for make in makers]


def dtype():
    """What features are computed in."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def roi_align_own(sizes, rng):
    levels, rois = _features_and_rois(sizes, rng)
    level = np.asarray(roi_levels(rois))
    other = _torchvision_crops(levels, [rois[level == k] for k in range(len(levels))])
    return Operator(f"RoIAlign, {sizes.rois} RoIs, own level", crop_own_level, (levels, rois),
                    "torchvision roi_align", other)


def roi_align_all(sizes, rng):
    levels, rois = _features_and_rois(sizes, rng)
    four = lambda levels, rois: crop_all_levels(levels, rois, crop_own_level(levels, rois))
    return Operator(f"RoIAlign, {sizes.rois} RoIs, four levels", four, (levels, rois),
                    "torchvision roi_align", _torchvision_crops(levels, [rois] * len(levels)))


def _features_and_rois(sizes, rng):
    pyramid = inputs.pyramid(sizes.image, sizes.channels, rng, dtype())
    return pyramid, jnp.asarray(inputs.boxes(sizes.rois, sizes.image, rng))


def _torchvision_crops(levels, rois):
    """Pools each list of RoIs from its level; torchvision has float16 on GPUs."""
    if not yardsticks.torchvision():
        return None
    torch, roi_align = yardsticks.torch(), yardsticks.torchvision().ops.roi_align
    precision = torch.float32 if dtype() == jnp.float32 else torch.float16
    maps = [yardsticks.tensor(jnp.asarray(x, jnp.float32), precision).permute(2, 0, 1)[None] for x in levels]
    boxes = [[yardsticks.tensor(r, precision)] for r in rois]
    return yardsticks.waiting(lambda: [
        roi_align(x, r, BINS, 1 / stride, aligned=True) for x, r, stride in zip(maps, boxes, STRIDES)])


def rpn_nms(sizes, rng):
    """As in the RPN: the best candidates of each of five levels, the coarsest having fewer."""
    few = min(sizes.candidates, 3 * -(-sizes.image[0] // 64) * -(-sizes.image[1] // 64))
    sides = 24, 48, 96, 192, 384
    boxes = np.stack([inputs.boxes(sizes.candidates, sizes.image, rng, side, 2 * side) for side in sides])
    scores = rng.uniform(0, 1, boxes.shape[:2]).astype(np.float32)
    scores[-1, few:] = -np.inf
    run = jax.vmap(lambda b, s: nms(b, s, 0.7, sizes.candidates))
    other = None
    if yardsticks.torchvision():
        real = scores > -np.inf
        per_level = [(yardsticks.tensor(b[r]), yardsticks.tensor(s[r])) for b, s, r in zip(boxes, scores, real)]
        other = yardsticks.waiting(lambda: [yardsticks.torchvision().ops.nms(b, s, 0.7) for b, s in per_level])
    count = 4 * sizes.candidates + few
    return Operator(f"NMS, {count} candidates of five levels", run, (jnp.asarray(boxes), jnp.asarray(scores)),
                    "torchvision nms", other)


def class_nms(sizes, rng):
    boxes, scores = _scored(sizes, rng)
    other = None
    if yardsticks.torchvision():
        flat = (yardsticks.tensor(boxes.repeat(sizes.classes, axis=0)), yardsticks.tensor(scores.reshape(-1)),
                yardsticks.tensor(np.tile(np.arange(sizes.classes), len(boxes))))
        other = yardsticks.waiting(lambda: yardsticks.torchvision().ops.batched_nms(*flat, 0.5)[:100])
    return Operator(f"NMS, {scores.size} candidates of {sizes.classes} classes",
                    lambda b, s: multiclass_nms(b, s, 0.5, 0.05, 100),
                    (jnp.asarray(boxes), jnp.asarray(scores)), "torchvision batched_nms", other)


def class_soft_nms(sizes, rng):
    boxes, scores = _scored(sizes, rng)
    return Operator(f"soft-NMS, {scores.size} candidates of {sizes.classes} classes",
                    lambda b, s: soft_nms(b, s, 0.5, 0.05, 100), (jnp.asarray(boxes), jnp.asarray(scores)))


def _scored(sizes, rng):
    """Boxes `[R, 4]` and scores `[R, classes]`, all of them above .05."""
    scores = rng.uniform(0.051, 1, (sizes.rois, sizes.classes)).astype(np.float32)
    return inputs.boxes(sizes.rois, sizes.image, rng), scores


def deformable(sizes, rng):
    """A 3x3 layer of C4, of which ResNet-101 has 22."""
    height, width, channels = -(-sizes.image[0] // 16), -(-sizes.image[1] // 16), sizes.channels
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    x, offsets, kernel = draw(height, width, channels), 2 * draw(height, width, 18), draw(3, 3, channels, channels)
    other = None
    if yardsticks.torchvision():
        arrays = x.transpose(2, 0, 1)[None], offsets.transpose(2, 0, 1)[None], kernel.transpose(3, 2, 0, 1)
        given = [yardsticks.tensor(a) for a in arrays]
        other = yardsticks.waiting(lambda: yardsticks.torchvision().ops.deform_conv2d(*given, padding=1))
    return Operator(f"deformable conv, {height}x{width}, {channels} to {channels}", deform_conv,
                    (jnp.asarray(x, dtype()), jnp.asarray(offsets), jnp.asarray(kernel, dtype())),
                    "torchvision deform_conv2d", other)


def top_k(sizes, rng):
    """The best candidates among P2's anchors."""
    count = 3 * (sizes.image[0] // 4) * (sizes.image[1] // 4)
    scores = rng.standard_normal(count, np.float32)
    other = None
    if yardsticks.torch():
        other = yardsticks.waiting(yardsticks.torch().topk, yardsticks.tensor(scores), sizes.candidates)
    return Operator(f"top {sizes.candidates} of {count} anchors", lambda s: jax.lax.top_k(s, sizes.candidates),
                    (jnp.asarray(scores),), "torch.topk", other)


def assignment(sizes, rng):
    """All anchors of an image to its ground truth, which lies in 100 slots."""
    shapes = [(-(-sizes.image[0] // s), -(-sizes.image[1] // s)) for s in (*STRIDES, 64)]
    anchors, truths = np.concatenate(grid_anchors(shapes)), inputs.boxes(100, sizes.image, rng)
    other = None
    if yardsticks.torch():
        given = yardsticks.tensor(anchors), yardsticks.tensor(truths[:sizes.truths])
        other = yardsticks.waiting(_torch_assignment, *given)
    run = lambda a, t: assign_anchors(a, jnp.ones(len(a), bool), t, jnp.arange(100) < sizes.truths)
    return Operator(f"assignment, {len(anchors)} anchors, {sizes.truths} boxes", run,
                    (jnp.asarray(anchors), jnp.asarray(truths)), "torch, IoU and both maxima", other)


def _torch_assignment(anchors, truths):
    """The expensive part of the original's assigner: the matrix of IoUs and its maxima along both axes."""
    torch = yardsticks.torch()
    low = torch.maximum(anchors[None, :, :2], truths[:, None, :2])
    high = torch.minimum(anchors[None, :, 2:], truths[:, None, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area = lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    iou = overlap / (area(anchors)[None] + area(truths)[:, None] - overlap)
    return iou.max(dim=0), iou.max(dim=1)
