"""Compares the forms of RoIAlign on the device that is there: the doctor's check of kernels it has never run on."""
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops.crop_tiles import takes
from htd_jax.ops.pyramid_crops import STRIDES, crop_own_level

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the rms of what products give
REPEATS = 5


class Comparison(NamedTuple):
    """Seconds of the device's own form and of products, forward and backward, and their largest difference / rms.

    `fits`: whether the device's kernels can hold a pyramid of full size; where they cannot, its own form is products.
    """

    own: float
    products: float
    difference: float
    tolerance: float
    fits: bool = True


def compare() -> Comparison:
    """Pools RoIs from a random pyramid and takes the gradient, with `auto` and with `products`.

    On an accelerator of 1000 RoIs at 800x1344 in bfloat16, on a CPU of 100 at 256x320 in float32.
    """
    device = jax.default_backend()
    on_cpu = device == "cpu"
    dtype, (height, width), count, channels = (
        ("float32", (256, 320), 100, 32) if on_cpu else ("bfloat16", (800, 1344), 1000, 256))
    rng = np.random.default_rng(0)
    pyramid = [jnp.asarray(rng.standard_normal((height // s, width // s, channels)), dtype) for s in STRIDES]
    corners = rng.uniform(0, 1, (count, 2)) * (width, height)
    rois = jnp.asarray(np.concatenate([corners, corners + np.exp(rng.uniform(2, 6, (count, 2)))], axis=1), jnp.float32)
    (own, seconds), (plain, plain_seconds) = (_run(_pool(form), pyramid, rois) for form in ("auto", "products"))
    fits = on_cpu or takes(device, pyramid)
    return Comparison(seconds, plain_seconds, max(map(_difference, own, plain)), TOLERANCE[dtype], fits)


def _pool(form: str) -> Callable:
    """(pyramid, rois) -> crops, and the gradient of the pyramid where that of the crops is the crops."""
    def crops_and_gradient(pyramid, rois):
        with jax.default_matmul_precision("highest"):
            crops, transpose = jax.vjp(lambda pyramid: crop_own_level(pyramid, rois, form), pyramid)
            return [crops, *transpose(crops)[0]]
    return jax.jit(crops_and_gradient)


def _run(function, *arguments):
    """The result, and the least seconds of some calls."""
    result, times = jax.block_until_ready(function(*arguments)), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return [np.asarray(part, np.float64) for part in result], min(times)


def _difference(ours, plain):
    rms = np.sqrt(np.mean(plain**2))
    return float(np.abs(ours - plain).max() / max(rms, np.finfo(float).tiny))  # a level without RoIs has gradient 0
