"""PyTorch's time for a step's convolutions and matrix products alone: no PyTorch program with these layers takes less.

  python -m benchmarks.layers --config htd_r50 --image 800,1344        # on a CPU, with torch installed

How many convolutions the original takes depends on the processor; next to this figure ours means the same on all.
"""
import argparse
import collections
import functools
import sys
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import arithmetic, inputs, models, steps, table, timing, yardsticks
from htd_jax.models import detect, functional, resnet

IMAGES = {"train": 2, "detect all": 1}


class Layer(NamedTuple):
    """A convolution or product of operands of these `shapes` (NHWC and HWIO); `more`: its other parameters."""

    operation: str
    shapes: tuple
    more: tuple


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="htd_r50")
    parser.add_argument("--image", type=lambda text: tuple(map(int, text.split(","))), default=(800, 1344))
    given = parser.parse_args()
    if not yardsticks.torch():
        parser.error("torch is not installed: pip install torch")
    print(table.provenance("python -m benchmarks.layers " + " ".join(sys.argv[1:])), flush=True)
    convolution = timing.times({"conv2d": yardsticks.conv_p2(given.image)}, 5)["conv2d"].median
    shape = f"{given.image[0]}x{given.image[1]}"
    print(f"\n| {given.config}, {shape} | PyTorch's layers alone, seconds | times conv2d on P2 ({convolution:.3f} s) |")
    print("| --- | --- | --- |")
    config = models.load(given.config)
    for what, images in IMAGES.items():
        total = seconds(layers(what, config, images, given.image), frozen_layers(config) if what == "train" else None)
        print(f"| {what}, {images} x | {total:.2f} | {total / convolution:.1f} |", flush=True)


def layers(what, config, images, image):
    """The layers of a forward pass, in order: of the losses ('train'), or of detection, every proposal regressed."""
    functions = functional.functions(config)
    given = jax.eval_shape(functions.init)
    given = given if what == "train" else (given,)
    batch = inputs.batch(images, image, np.random.default_rng(0), *(steps.TRUTHS, steps.SLOTS) * (what == "train"),
                         classes=config.model.num_classes)
    function = functions.detect if what != "train" else functools.partial(functions.loss, key=jax.random.key(0))
    whole = mock.patch.object(detect, "REGRESSED_AT_ONCE", config.test.proposals)  # all in one round of the loop
    with arithmetic.without_roi_align(), whole, steps.boxes_alone(steps.TRUTHS, config):
        return list(_walk(jax.make_jaxpr(lambda *a: function(*a))(*given, batch).jaxpr))


def _walk(jaxpr):
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = tuple(v.aval.shape for v in equation.invars)
        if name == "conv_general_dilated":
            yield Layer("convolution", shapes, (tuple(params["window_strides"]), tuple(params["padding"]),
                                                tuple(params["rhs_dilation"]), params["feature_group_count"]))
        elif name == "dot_general":
            yield Layer("product", shapes, params["dimension_numbers"])
        elif name == "cond":  # the forms of a computation for different devices, the accelerators' last
            yield from _walk(params["branches"][-1].jaxpr)
        else:
            for inner in arithmetic.jaxprs(params.values()):
                yield from [*_walk(inner)] * (params["length"] if name == "scan" else 1)


def seconds(found, forward_only=None, repeats=3):
    """What PyTorch takes for the layers `found`, equal layers measured once (median).

    forward_only: of the first so many no gradient is computed, of the others those of both operands (1 % too
    much: the first three that are trained read a frozen map). None: of none.
    """
    forward_only = len(found) if forward_only is None else forward_only
    counts = collections.Counter((layer, k >= forward_only) for k, layer in enumerate(found))
    return sum(count * timing.times({layer: call(*layer)}, repeats)[layer].median for layer, count in counts.items())


def frozen_layers(config):
    """How many layers, the first of a forward pass, nothing is learnt in or propagated through."""
    if not config.model.frozen_stages:
        return 0
    blocks = resnet.BLOCKS[config.model.depth][:config.model.frozen_stages]
    bottleneck = config.model.depth in resnet.BOTTLENECK_DEPTHS
    shortcuts = len(blocks) if bottleneck else len(blocks) - 1  # one where a stage begins with other channels
    return 1 + sum(blocks) * (3 if bottleneck else 2) + shortcuts


def call(layer, trained):
    """A call without arguments that computes `layer` in PyTorch, with its gradients if it is `trained`."""
    torch = yardsticks.torch()
    function = _convolution if layer.operation == "convolution" else _product
    compute, shapes = function(torch, layer)
    operands = [torch.randn(*shape, requires_grad=trained) for shape in shapes]
    if not trained:
        return yardsticks.waiting(compute, *operands)
    after = torch.randn(*compute(*operands).shape)
    return lambda: torch.autograd.grad(compute(*operands), operands, after)


def _convolution(torch, layer):
    """(function, shapes of its operands) in PyTorch's layout."""
    (b, h, w, inputs_), (rows, columns, *channels) = layer.shapes
    strides, padding, dilation, groups = layer.more
    pad = tuple(before for before, _ in padding)  # as much behind: the detector pads so everywhere
    compute = lambda x, kernel: torch.nn.functional.conv2d(x, kernel, None, strides, pad, dilation, groups)
    return compute, ((b, inputs_, h, w), (*channels[::-1], rows, columns))


def _product(torch, layer):
    (left, right), (left_batch, right_batch) = layer.more
    names = ["abcdefgh"[:len(layer.shapes[0])], list("stuvwxyz"[:len(layer.shapes[1])])]
    for ours, theirs in zip((*left, *left_batch), (*right, *right_batch)):
        names[1][theirs] = names[0][ours]
    kept = [c for c in names[0] if c not in names[1]], [c for c in names[1] if c not in names[0]]
    result = "".join([*(names[0][axis] for axis in left_batch), *kept[0], *kept[1]])
    return functools.partial(torch.einsum, f"{names[0]},{''.join(names[1])}->{result}"), layer.shapes


if __name__ == "__main__":
    main()
