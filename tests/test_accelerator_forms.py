"""What accelerators compute in a form of their own is what the plain statement gives, gradients included."""
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from htd_jax.models import fpn
from htd_jax.models.layers import (
    FrozenBatchNorm,
    clear_padding,
    conv,
    crop_linear_by_bins,
    norm_in_kernel,
    norm_of_map,
    relu,
    shifted,
)
from htd_jax.models.resnet import DeformConv, max_pool_3x3
from htd_jax.models.rpn import outputs_by_cells, outputs_by_maps, surroundings
from htd_jax.ops import edges, top_k as top_k_lib
from htd_jax.ops.cells import surrounding_rows
from htd_jax.ops.deform_conv import deform_conv, deform_conv_by_rows
from htd_jax.ops.few_images import conv_as_product
from htd_jax.ops.stem_conv import stem_of_blocks

nms_lib = importlib.import_module("htd_jax.ops.nms")  # the name in htd_jax.ops is the operator's


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def check_value_and_gradients(form, plain, *inputs, tolerance=1e-5):
    (value, gradients), (expected, plain_gradients) = jax.vjp(form, *inputs), jax.vjp(plain, *inputs)
    cotangent = draw(*expected.shape, seed=9)
    ours, plainly = (jax.tree.leaves(found) for found in (
        (value, gradients(cotangent)), (expected, plain_gradients(cotangent))))
    for a, b in zip(ours, plainly, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("groups, stride, reach", [(1, 1, 1), (4, 1, 1), (1, 2, 4), (1, 1, 20)])
def test_deformable_convolution(groups, stride, reach):
    x, offsets = draw(2, 8, 12, 16), reach * draw(2, 8 // stride, 12 // stride, 18, seed=1)
    kernel = draw(3, 3, 16 // groups, 8, seed=2)

    def plain(x, offsets, kernel):
        return jax.vmap(lambda x, offsets: deform_conv(x, offsets, kernel, stride, groups=groups))(x, offsets)

    check_value_and_gradients(lambda *inputs: deform_conv_by_rows(*inputs, stride), plain, x, offsets, kernel)


def test_gradient_of_deformable_convolution_is_summed_in_float32():
    """Of 9 * 1024 taps on one cell: bfloat16 sums would stop growing at 256."""
    x, kernel = jnp.ones((1, 32, 32, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 1), jnp.bfloat16)
    y, x_ = jnp.meshgrid(jnp.arange(32) - 1, jnp.arange(32) - 1, indexing="ij")
    taps = jnp.arange(9)[None, None]
    to_one_cell = jnp.stack([5 - y[..., None] - taps // 3, 5 - x_[..., None] - taps % 3], axis=-1)
    offsets = to_one_cell.reshape(1, 32, 32, 18).astype(jnp.float32)
    gradient = jax.grad(lambda x: deform_conv_by_rows(x, offsets, kernel).astype(jnp.float32).sum())(x)
    assert gradient[0, 5, 5, 0] == 9 * 1024 and gradient.sum() == 2 * 9 * 1024


@pytest.mark.parametrize("height, width", [(16, 20), (13, 14), (12, 15)])
@pytest.mark.parametrize("padded", [None, jnp.array([[9, 12], [11, 6]])])
def test_stem(height, width, padded):
    def plain(x, kernel, offset):
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((3, 3), (3, 3)),
                                         dimension_numbers=("NHWC", "HWIO", "NHWC")) + offset[None, None, None]
        return max_pool_3x3(clear_padding(jax.nn.relu(x), padded, stride=2))

    check_value_and_gradients(lambda *inputs: stem_of_blocks(*inputs, padded), plain,
                              draw(2, height, width, 3), draw(7, 7, 3, 5, seed=1), draw(5, seed=2))


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolution_as_product(size, stride):
    where = (stride, stride), ((size // 2, size // 2),) * 2
    plain = lambda *inputs: jax.lax.conv_general_dilated(*inputs, *where, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    product = lambda x, kernel: conv_as_product(x, kernel, *where)
    check_value_and_gradients(product, plain, draw(2, 7, 8, 6), draw(size, size, 6, 5, seed=1))


def test_surroundings_of_anchors():
    shapes = [(16, 20), (8, 10), (4, 5), (3, 3)]
    pyramid = [draw(2, *shape, 8, seed=k) for k, shape in enumerate(shapes)]
    starts = np.cumsum([0, *(h * w for h, w in shapes)])
    inner = [start + y * w + x for start, (h, w) in zip(starts, shapes)
             for y in range(1, h - 1) for x in range(1, w - 1)]
    anchors = 3 * jnp.asarray(np.random.default_rng(0).choice(inner, (2, 60))) + jnp.arange(60)[None] % 3  # some twice
    check_value_and_gradients(lambda *pyramid: surrounding_rows(list(pyramid), anchors // 3),
                              lambda *pyramid: jax.vmap(surroundings)(list(pyramid), anchors), *pyramid)


def test_outputs_of_rpn():
    inputs = draw(2, 5, 7, 8), draw(1, 1, 8, 15, seed=1), draw(15, seed=2)
    joined = lambda form: lambda *inputs: jnp.concatenate([x.reshape(2, -1) for x in form(*inputs)], axis=1)
    check_value_and_gradients(joined(outputs_by_maps), joined(outputs_by_cells), *inputs)


def test_linear_layer_of_crops():
    layer = nnx.Linear(7 * 7 * 4, 5, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    plain = lambda crops: layer(crops.reshape(2, 3, -1))
    check_value_and_gradients(lambda crops: crop_linear_by_bins(layer, crops), plain, draw(2, 3, 7, 7, 4))


def test_doubling():
    x = draw(2, 5, 7, 3)
    np.testing.assert_array_equal(fpn._broadcast(x), fpn._repeated(x))
    gradient = draw(2, 10, 14, 3, seed=1)
    plain = jax.vjp(lambda x: x.repeat(2, axis=1).repeat(2, axis=2), x)[1](gradient)[0]
    np.testing.assert_allclose(fpn.sums_of_four(gradient), plain, rtol=1e-5, atol=1e-6)
    ours = jax.vjp(lambda x: fpn.upsample(x, (10, 14)), x)[1](gradient)[0]
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_edges_in_place():
    features, ends = draw(4, 6, 7, 3), jnp.array([[6, 7], [3, 7], [6, 2], [1, 1]])
    np.testing.assert_array_equal(edges.extend_in_place(features, ends), edges.extend_in_passes(features, ends))
    plain = jax.vjp(lambda x: edges.extend_in_passes(x, ends), features)[1](features)[0]
    for backward in (edges.in_place_backward, edges.in_passes_backward):
        np.testing.assert_allclose(backward(features, ends), plain, rtol=1e-6)


def numbers(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count).astype(np.float32)
    rare = rng.random(count) < 0.01
    return {"all": x, "ties": np.round(2 * x) / 2, "few": np.where(rare, x, -np.inf), "none": np.full(count, -np.inf),
            "zeros": np.where(x > 0, 0.0, -0.0)}[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["all", "ties", "few", "none", "zeros"])
@pytest.mark.parametrize("count, k", [(257, 257), (5000, 300)])
def test_top_k(kind, count, k):
    x = jnp.asarray(numbers(kind, count))
    (values, index), (expected, at) = top_k_lib.by_counting(x, k), jax.lax.top_k(x, k)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(index, at)


@pytest.mark.parametrize("kind", ["all", "ties", "few", "zeros"])
def test_best_in_place_are_those_of_top_k(kind):
    x = jnp.asarray(numbers(kind, 5000))
    values, index = top_k_lib.in_place(x, 300)
    np.testing.assert_array_equal(index, np.sort(jax.lax.top_k(x, 300)[1]))
    np.testing.assert_array_equal(values, x[index])


@pytest.mark.parametrize("kind", ["all", "ties", "few", "none"])
@pytest.mark.parametrize("kept", [20, 500])
def test_nms_in_parts(kind, kept, monkeypatch):
    monkeypatch.setattr(nms_lib, "PART", 64), monkeypatch.setattr(nms_lib, "BLOCK", 32)
    corner = 100 * jnp.abs(draw(700, 2))
    boxes = jnp.concatenate([corner, corner + 40 + 20 * jnp.abs(draw(700, 2, seed=1))], axis=1)
    of = boxes, jnp.asarray(numbers(kind, 700)), jnp.arange(700) % 3, 0.5, kept
    (index, used), (expected, expected_used) = nms_lib._in_parts(*of), nms_lib._at_once(*of)
    np.testing.assert_array_equal(used, expected_used)
    np.testing.assert_array_equal(jnp.where(used, index, 0), jnp.where(used, expected, 0))


def test_gradient_of_an_offset_is_summed_in_float32():
    """Of 4096 ones: a bfloat16 sum would stop growing at 256."""
    x = jnp.ones((1, 64, 64, 3), jnp.bfloat16)
    gradient = jax.grad(lambda offset: shifted(x, offset).astype(jnp.float32).sum())(jnp.zeros(3))
    assert (gradient == 4096).all()


def test_relu_has_the_plain_one_s_gradient():
    x = jnp.append(draw(20), jnp.array([0.0, -0.0]))
    check_value_and_gradients(relu, jax.nn.relu, x)


@pytest.mark.parametrize("form", [norm_in_kernel, norm_of_map])
@pytest.mark.parametrize("deformable", [False, True])
def test_frozen_batch_norm_of_a_convolution(form, deformable):
    def run(form, x, kernel, scale, bias):
        make = dict(stride=2, groups=1, dtype=None, rngs=nnx.Rngs(0))
        convolve = DeformConv(6, 5, **make) if deformable else conv(6, 5, 3, bias=False, **make)
        norm = FrozenBatchNorm(5, rngs=nnx.Rngs(0))
        norm.mean[...], norm.var[...] = draw(5, seed=1), jnp.abs(draw(5, seed=2)) + 0.5
        convolve.kernel[...], norm.scale[...], norm.bias[...] = kernel, scale, bias
        return form(convolve, norm, x)

    def of_map(convolve, norm, x):
        spread = lambda vector: vector[...][None, None, None]
        return (convolve(x) - spread(norm.mean)) / jnp.sqrt(spread(norm.var) + 1e-5) * spread(norm.scale) + spread(
            norm.bias)

    inputs = draw(2, 8, 10, 6), draw(3, 3, 6, 5, seed=3), draw(5, seed=4), draw(5, seed=5)
    check_value_and_gradients(functools.partial(run, form), functools.partial(run, of_map), *inputs)
