"""How long a compiled function takes, the memory and arithmetic it needs, and what the device can do at best."""
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import arithmetic

BRIEF = 2.0  # seconds


class Times(NamedTuple):
    """Seconds of one call: median, least and most of the repeats."""

    median: float
    low: float
    high: float


class Compiled(NamedTuple):
    """`call()` runs it and waits; `seconds` it took to compile; `memory` bytes at its peak; `flops` of one call."""

    call: Callable[[], Any]
    seconds: float
    memory: int
    flops: float


def compiled(function, *arguments, flops=None):
    """Compiles `function` (jitted here) for `arguments`.

    `flops`: where they are known; else `arithmetic.least` counts them. Memory is what the compiler sets aside:
    arguments, results and temporaries.
    """
    flops = arithmetic.least(function, *arguments).flops if flops is None else flops
    executable, seconds = compile_(jax.jit(function), *arguments)
    sizes = executable.memory_analysis()
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return Compiled(lambda: jax.block_until_ready(executable(*arguments)), seconds, memory, flops)


def compile_(jitted, *arguments):
    """(executable, seconds it took to compile it); tracing is not counted."""
    lowered = jitted.lower(*arguments)
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def times(calls, repeats):
    """{name: Times} of `calls`, {name: function}; each is called once to warm up.

    They take turns, so that other load on the machine affects all of them: ratios mean more than seconds. What takes
    less than `BRIEF` is called once more before it is timed: right after a long call that has taken all caches and
    memory, a convolution of .4 s takes .6.
    """
    brief = {name: seconds_of(call) < BRIEF for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if brief[name]:
                call()
            seconds[name].append(seconds_of(call))
    return {name: Times(float(np.median(s)), min(s), max(s)) for name, s in seconds.items()}


def seconds_of(call):
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_flops(dtype, size=None, repeats=5):
    """Floating-point operations a second of the best of some large matrix products: what this device can do."""
    size = size or (3072 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = compiled(jnp.matmul, a, a, flops=2 * size**3)
    return product.flops / times({"product": product.call}, repeats)["product"].low


def device_memory_peak():
    """Bytes the accelerator had in use at most so far; None on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None
