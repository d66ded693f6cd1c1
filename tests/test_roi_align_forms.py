"""The kernels of RoIAlign for accelerators, interpreted on a CPU, give what products with whole maps give."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from htd_jax.ops import crop_products, pyramid_crops
from htd_jax.ops.gpu import roi_align as gpu, roi_align_backward as gpu_backward
from htd_jax.ops.roi_align import axis_weights
from htd_jax.ops.tpu import roi_align as tpu, roi_align_backward as tpu_backward
from htd_jax.ops.windows import Items

SHAPES = (24, 52), (12, 26), (6, 13), (3, 7)
CHANNELS = 16
RACES = pltpu.InterpretParams(detect_races=True)


def boxes():
    """Float32 `[2, 14, 4]` in an image of 96 x 208: small, large, huge, outside, without area, at the borders."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-0.1, 1, (8, 2)) * (208, 96), np.exp(rng.uniform(0, 5, (8, 2)))
    special = [(0, 0, 0, 0), (40, 40, 20, 60), (-500, -500, -400, -400), (-1000, -900, 1200, 1000), (0, 0, 208, 96),
               (190, 80, 230, 130)]
    some = np.concatenate([np.concatenate([corner, corner + size], axis=1), special]).astype(np.float32)
    return jnp.asarray(np.stack([some, some[::-1] + 3]))


def draw(shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)


def problem(dtype, batch):
    """Pyramid, corners in cells, levels, active and a gradient of the crops."""
    rois = boxes()[:batch]
    levels = jnp.asarray(np.random.default_rng(1).integers(0, 4, rois.shape[:2]))
    levels = levels.at[:, 8:].set(jnp.arange(6) % 2).at[:, 11].set(0)
    pyramid = [draw((batch, *shape, CHANNELS), dtype, k) for k, shape in enumerate(SHAPES)]
    gradient = draw((*levels.shape, 7, 7, CHANNELS), dtype, 9)
    corners = rois / jnp.asarray(pyramid_crops.STRIDES)[levels][..., None] - 0.5
    return pyramid, corners, levels, jnp.arange(rois.shape[1])[None] % 5 + 0 * levels > 0, gradient


def whole_maps(pyramid, corners, levels, active):
    """The crops in float32, as products with whole maps."""
    def one(features, corners, where):
        wy = axis_weights(corners[:, 1], corners[:, 3], features.shape[0])
        wx = axis_weights(corners[:, 0], corners[:, 2], features.shape[1])
        return crop_products.contract(features, jnp.where(where[:, None, None], wy, 0), wx)

    return sum(jax.vmap(one)(features, corners, active & (levels == k)) for k, features in enumerate(pyramid))


def check(actual, expected, dtype):
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    rms = float(jnp.sqrt((expected**2).mean()))
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=tolerance, atol=3 * tolerance * rms)


@functools.cache
def expected(dtype, batch):
    """Crops and gradients of the levels by `whole_maps`, in float32 throughout."""
    pyramid, *items, gradient = problem(dtype, batch)
    both = lambda pyramid, gradient: (lambda crops, transpose: (crops, transpose(gradient)[0]))(
        *jax.vjp(lambda pyramid: whole_maps(pyramid, *items), pyramid))
    return jax.jit(both)(*jax.tree.map(lambda x: x.astype(jnp.float32), (pyramid, gradient)))


@pytest.mark.parametrize("form", ["tpu", "gpu"])
def test_crops_of_a_pyramid(form):
    """A batch's crops of both kinds, with their gradients: a form's own are those of products."""
    pyramid, rois = problem("float32", 2)[0], boxes()
    where = jnp.arange(10).reshape(2, 5) % 3 > 0

    def crops(form):
        crop = functools.partial(pyramid_crops.crop_own_and_all_levels, form=form)
        return lambda pyramid: jax.vmap(crop)(pyramid, rois, where)

    def crops_and_gradients(form):
        loss = lambda found: sum((x * draw(x.shape, x.dtype, k)).sum() for k, x in enumerate(jax.tree.leaves(found)))
        with_loss = lambda pyramid: (lambda found: (loss(found), found))(crops(form)(pyramid))
        (_, found), gradients = jax.jit(jax.value_and_grad(with_loss, has_aux=True))(pyramid)
        return jax.tree.leaves((found, gradients))

    for actual, expected in zip(crops_and_gradients(form), crops_and_gradients("products"), strict=True):
        check(actual, expected, "float32")


DTYPES = pytest.mark.parametrize("dtype, batch", [("float32", 2), ("bfloat16", 1)])


def check_form(crops, gradients, dtype, batch):
    """Pools and takes the gradient in two parts, of 9 and 5 items."""
    pyramid, *items, gradient = problem(dtype, batch)
    halves = lambda array: jnp.split(array, [9], axis=1)
    parts = list(itertools.starmap(Items, zip(*map(halves, items))))

    def crops_and_gradients(pyramid, parts, gradient):
        return jnp.concatenate(crops(pyramid, parts), axis=1), gradients(halves(gradient), parts)

    found = jax.jit(crops_and_gradients)(pyramid, parts, gradient)
    for actual, level in zip(*map(jax.tree.leaves, (found, expected(dtype, batch)))):
        check(actual, level, dtype)


@DTYPES
def test_tpu_kernels(dtype, batch):
    crops = functools.partial(tpu.crops, interpret=RACES)
    check_form(crops, functools.partial(tpu_backward.gradients, shapes=SHAPES, interpret=RACES), dtype, batch)


@DTYPES
def test_gpu_kernels(dtype, batch):
    crops = functools.partial(gpu.crops, interpret=True)
    check_form(crops, functools.partial(gpu_backward.gradients, shapes=SHAPES, interpret=True), dtype, batch)
