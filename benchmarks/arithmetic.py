"""What a function has to compute and to move at least: its convolutions and matrix products, counted in its jaxpr.

  python -m benchmarks.arithmetic --config htd_r50 --batch 8 --image 800,1344   # a training step's, for `htd_jax.aot`

Unlike XLA's count this one multiplies loops by their length, where it is known.
"""
import argparse
import importlib
import json
import math
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from htd_jax import aot
from htd_jax.models import functional
from htd_jax.ops.crop_products import BINS


class Work(NamedTuple):
    """Floating-point operations, and bytes of operands and results that are each read or written once."""

    flops: float = 0
    bytes: float = 0

    def times(self, count):
        return Work(count * self.flops, count * self.bytes)


def least(function, *arguments):
    """The `Work` of function(*arguments) but for RoIAlign, which needs next to none (as products it takes its time in
    flops), and for what is computed again to save memory. BA counts for as many RoIs as it has slots."""
    with without_roi_align(), mock.patch.object(jax, "checkpoint", lambda function, **_: function):
        return program(function, *arguments)


def without_roi_align():
    """Where crops are zeros: a context for tracing."""
    empty = lambda features, wy, wx: jnp.zeros((len(wy), *2 * (BINS,), features.shape[-1]), features.dtype)
    return mock.patch.object(importlib.import_module("htd_jax.ops.roi_align"), "_crops", empty)


def program(function, *arguments):
    """The `Work` of function(*arguments) as it is written for accelerators. Loops of unknown length count once."""
    return _total(jax.make_jaxpr(lambda *a: function(*a))(*arguments).jaxpr)  # a new function: traced again


def _total(jaxpr):
    parts = [_equation(equation) for equation in jaxpr.eqns]
    return Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))


def _equation(equation):
    count = {"dot_general": _product, "conv_general_dilated": _convolution}.get(equation.primitive.name)
    if count:
        operands = *equation.invars, *equation.outvars
        return Work(count(equation), sum(v.aval.size * v.aval.dtype.itemsize for v in operands))
    inner = [_total(jaxpr) for jaxpr in jaxprs(equation.params.values())]
    if equation.primitive.name == "cond":  # one of its branches: the forms of a computation for different devices
        return max(inner)
    work = Work(sum(part.flops for part in inner), sum(part.bytes for part in inner))
    return work.times(equation.params["length"]) if equation.primitive.name == "scan" else work


def jaxprs(values):
    """The jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def _product(equation):
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation):
    kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
    per_output = kernel.size // kernel.shape[numbers.rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * per_output // math.prod(equation.params["lhs_dilation"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="htd_r50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=lambda text: tuple(map(int, text.split(","))), default=(800, 1344))
    given = parser.parse_args()
    config = importlib.import_module(f"configs.{given.config}").get_config()
    config.model.num_classes, config.dtype = 80, "bfloat16"
    functions = functional.functions(config)
    arguments = *jax.eval_shape(functions.init), aot.batch_of(given.batch, given.image, aot.BOXES), jax.random.key(0)
    gradient = jax.grad(functions.loss, has_aux=True)
    work = dict(least=least(gradient, *arguments), program=program(gradient, *arguments))
    print(json.dumps({name: counted._asdict() for name, counted in work.items()}))


if __name__ == "__main__":
    main()
