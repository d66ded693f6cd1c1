"""RoIAlign beside a sum over its samples: every form, and RoIs of every kind."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from drawn import boxes, seeds
from hypothesis import given, settings

from htd_jax.ops import pyramid_crops
from htd_jax.ops.roi_align import roi_align

COUNT, CHANNELS = 12, 16
LEVELS = (24, 40), (12, 20), (6, 10), (3, 5)  # of an image of 96 x 160
JUMP = 1e-3  # cells: a sample so near to where the map ends may fall to either side of it


def draw(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@functools.cache
def crops(stride, form):
    return jax.jit(functools.partial(roi_align, stride=stride, form=form))


def check(found, features, rois, strides):
    """Crops `[N, 7, 7, C]`. The bound is that of float32 in coordinates of so many cells."""
    for crop, roi, level, stride in zip(np.asarray(found), rois, features, strides):
        expected, distance = plain.roi_align(level, roi, stride)
        rounding = 4 * np.finfo(np.float32).eps * max(1, np.abs(roi).max() / stride)
        if distance > JUMP:
            np.testing.assert_allclose(crop, expected, atol=(1e-5 + rounding) * np.abs(level).max() * 4)


@pytest.mark.parametrize("shape, stride", [((24, 40), 4), ((1, 1), 4), ((1, 9), 32), ((2, 300), 8)])
@pytest.mark.parametrize("form", ["auto", "products"])
@given(boxes(COUNT), seeds)
def test_crops_of_a_map(shape, stride, form, rois, seed):
    features = draw(*shape, 3, seed=seed)
    found = crops(stride, form)(features, rois)
    check(found, [features] * COUNT, rois, [stride] * COUNT)


@pytest.mark.parametrize("form", ["auto", "products"])
@given(boxes(COUNT, kinds=("point", "line", "inverted")), seeds)
def test_without_area_a_crop_is_zero(form, rois, seed):
    rois = np.where((rois[:, 2:] - rois[:, :2] > 0).all(axis=1, keepdims=True), rois[:, [0, 1, 0, 1]], rois)
    assert not np.asarray(crops(4, form)(draw(24, 40, 3, seed=seed), rois)).any()


@pytest.mark.parametrize("form", ["auto", "products"])
@given(boxes(COUNT, kinds=("outside",)))
def test_far_outside_a_crop_is_zero(form, rois):
    assert not np.asarray(crops(4, form)(np.ones((8, 8, 3), np.float32), rois + np.sign(rois) * 100)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_a_broken_roi_spoils_no_other(value):
    rois = np.float32([(8, 8, 60, 70), (value, 8, 60, 70), (8, 8, 60, value), (value,) * 4, (8, 8, 60, 70)])
    for form in ("auto", "products"):
        found = np.asarray(crops(4, form)(draw(24, 40, 3, seed=0), rois))
        alone = np.asarray(crops(4, form)(draw(24, 40, 3, seed=0), rois[[0, 0, 0, 0, 0]]))
        np.testing.assert_allclose(found[[0, 4]], alone[[0, 4]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["auto", "products"])
@given(boxes(COUNT), seeds)
def test_the_gradient_is_the_transpose(form, rois, seed):
    """<g, crops(f)> = <gradient(g), f>, for crops are linear in the map."""
    features, cotangent = draw(24, 40, 3, seed=seed), draw(COUNT, 7, 7, 3, seed=seed + 1)
    found, gradient = _with_gradient(form)(features, rois, cotangent)
    left, right = (float(np.vdot(np.float64(a), np.float64(b)))
                   for a, b in ((found, cotangent), (gradient, features)))
    assert math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-3)


@functools.cache
def _with_gradient(form):
    def both(features, rois, cotangent):
        found, backward = jax.vjp(lambda features: roi_align(features, rois, 4, form=form), features)
        return found, backward(cotangent)[0]
    return jax.jit(both)


@functools.cache
def pyramid_form(form):
    own = functools.partial(pyramid_crops.crop_own_level, form=form)
    return jax.jit(own), jax.jit(lambda pyramid, rois: pyramid_crops.crop_all_levels(
        pyramid, rois, own(pyramid, rois), form))


def check_pyramid(form, rois, seed):
    pyramid = [draw(*shape, CHANNELS, seed=seed + k) for k, shape in enumerate(LEVELS)]
    levels = [plain.roi_level(roi) for roi in rois]
    own, every = (crop(pyramid, rois) for crop in pyramid_form(form))
    unsure = np.array([_near_two_levels(roi) for roi in rois])
    found = np.where(unsure[:, None, None, None], 0, own)
    check(found[~unsure], [pyramid[k] for k, skip in zip(levels, unsure) if not skip], rois[~unsure],
          [pyramid_crops.STRIDES[k] for k, skip in zip(levels, unsure) if not skip])
    for k, stride in enumerate(pyramid_crops.STRIDES):
        check(every[k], [pyramid[k]] * len(rois), rois, [stride] * len(rois))


def _near_two_levels(roi):
    size = math.sqrt(max(float(plain.area(np.float64(roi))), 0)) / 56
    return size > 0 and abs(math.log2(size + 1e-6) - round(math.log2(size + 1e-6))) < 1e-5


# Inverted in both axes a RoI has an area; no decoded box is so.
DECODED = ("any", "integer", "point", "line", "outside", "huge")


@pytest.mark.parametrize("form", ["auto", "products"])
@given(boxes(6, kinds=DECODED, reach=1500), seeds)
def test_crops_of_a_pyramid(form, rois, seed):
    check_pyramid(form, rois, seed)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tpu", "gpu"])
@settings(max_examples=6)
@given(boxes(6, kinds=DECODED, reach=1500), seeds)
def test_crops_by_interpreted_kernels(form, rois, seed):
    check_pyramid(form, rois, seed)


@given(boxes(COUNT, kinds=DECODED))
def test_levels(rois):
    found = np.asarray(_levels(rois))
    expected = [plain.roi_level(roi) for roi in rois]
    assert all(a == b for a, b, roi in zip(found, expected, rois) if not _near_two_levels(roi))


_levels = jax.jit(pyramid_crops.roi_levels)


def test_float64_changes_nothing_but_rounding():
    rois = np.float32([(8, 8, 60, 70), (-500, -3, 700, 90), (3, 3, 3, 9), (0, 0, 160, 96)])
    features = draw(24, 40, 3, seed=0)
    with jax.enable_x64(True):
        double = np.asarray(crops(4, "products")(jnp.asarray(features, jnp.float64), jnp.asarray(rois, jnp.float64)))
        single = np.asarray(crops(4, "products")(features, rois))
    assert double.dtype == np.float64 and single.dtype == np.float32
    expected = np.stack([plain.roi_align(np.float64(features), np.float64(roi), 4)[0] for roi in rois])
    np.testing.assert_allclose(double, expected, atol=1e-12)
    np.testing.assert_array_equal(single, crops(4, "products")(features, rois))
