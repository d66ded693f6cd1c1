"""What a CPU computes in a form of its own is what the form of the accelerators gives, gradients included."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax.ops import crop_products as products
from htd_jax.ops.conv import conv
from htd_jax.ops.cpu import conv as cpu_conv, roi_align as cpu_roi_align
from htd_jax.ops.cpu.conv import kernel_gradient
from htd_jax.ops.cpu.crop_conv import crop_conv, crop_conv_prepared, prepared
from htd_jax.ops.roi_align import axis_weights, roi_align


def draw(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


def check_close(actual, expected, tolerance=1e-5):
    rms = float(jnp.sqrt((expected**2).mean()))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=tolerance * rms)


def rois(count, image, seed=0):
    """Small and large ones, some partly or wholly outside, some without area."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-0.1, 1, (count, 2)) * image[::-1], np.exp(rng.uniform(0, 6, (count, 2)))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    boxes[:3] = (0, 0, 0, 0), (40, 40, 20, 60), (-500, -500, -400, -400)
    return jnp.asarray(boxes)


def weights(boxes, shape):
    corners = boxes / 4 - 0.5
    return (axis_weights(corners[:, 1], corners[:, 3], shape[0]),
            axis_weights(corners[:, 0], corners[:, 2], shape[1]))


@pytest.mark.parametrize("shape", [(100, 90), (30, 44)], ids=["windows", "small map"])
@pytest.mark.parametrize("windows", [(10,), (6, 20), ()])
def test_roi_align(shape, windows, monkeypatch):
    monkeypatch.setattr(cpu_roi_align, "WINDOWS", windows)
    monkeypatch.setattr(products, "CHUNK", 16), monkeypatch.setattr(cpu_roi_align, "CHUNK", 8)
    features, (wy, wx) = draw(*shape, 8), weights(rois(50, [4 * s for s in shape]), shape)
    forms = cpu_roi_align.by_windows, products.by_products
    windows, chunks = (jax.jit(lambda *a, form=form: form(*a))(features, wy, wx) for form in forms)
    check_close(windows, chunks)
    forms = cpu_roi_align.windows_backward, products.products_backward
    windows, chunks = (jax.jit(lambda *a, form=form: form(*a))(chunks, wy, wx) for form in forms)
    check_close(windows, chunks)


def test_roi_align_under_vmap_and_grad():
    features, boxes = draw(2, 100, 90, 8), jnp.stack([rois(20, (400, 360), seed) for seed in (1, 2)])
    where = jnp.arange(20) % 3 > 0

    def loss(crop, features):
        return (jax.vmap(crop)(features, boxes) ** 2).sum()

    def plain(features, boxes):
        wy, wx = weights(boxes, features.shape)
        return products.contract(features, jnp.where(where[:, None, None], wy, 0), wx)

    ours = lambda features, boxes: roi_align(features, boxes, 4, where)
    gradients = [jax.jit(jax.value_and_grad(functools.partial(loss, crop)))(features) for crop in (ours, plain)]
    for actual, expected in zip(*map(jax.tree.leaves, gradients)):
        check_close(actual, expected)


@pytest.mark.parametrize("shape", [(3, 7, 7, 8), (2, 4, 3, 5)])
def test_crop_conv(shape):
    x, kernel = draw(*shape), draw(3, 3, shape[-1], 12)
    convolve = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
                                 dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def value_and_gradients(form):
        return jax.jit(jax.value_and_grad(lambda x, k: (form(x, k) ** 2).sum(), argnums=(0, 1)))(x, kernel)

    check_close(crop_conv(x, kernel), convolve(x, kernel), 5e-6)
    if shape[1] % 2:
        check_close(crop_conv_prepared(x, prepared(kernel)), convolve(x, kernel), 5e-6)
    for actual, expected in zip(*map(jax.tree.leaves, map(value_and_gradients, (crop_conv, convolve)))):
        check_close(actual, expected)


@pytest.mark.parametrize("large", [cpu_conv.LARGE, 50], ids=["whole", "image by image"])
@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_gradient_of_conv(size, stride, large, monkeypatch):
    monkeypatch.setattr(cpu_conv, "LARGE", large)
    x, kernel, pad = draw(2, 9, 12, 4), draw(size, size, 4, 6), (size - 1) // 2
    arguments = ((stride, stride), ((pad, pad), (pad, pad)))
    more = dict(feature_group_count=1, lhs_dilation=(1, 1), rhs_dilation=(1, 1),
                dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(form):
        return jax.jit(jax.grad(lambda x, k: (form(x, k, *arguments, **more) ** 2).sum(), argnums=(0, 1)))(x, kernel)

    for actual, expected in zip(gradients(conv), gradients(jax.lax.conv_general_dilated)):
        assert actual.shape == expected.shape
        check_close(actual, expected)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA compiles for a CPU")
def test_gradient_of_a_kernel_copies_no_map():
    x, gradient = draw(2, 40, 40, 32), draw(2, 40, 40, 16)
    of_kernel = jax.jit(lambda x, g: kernel_gradient(x, g, (1, 1), (1, 1), ((0, 0), (0, 0))))
    assert of_kernel.lower(x, gradient).compile().memory_analysis().temp_size_in_bytes < x.nbytes / 4
