"""Deformable convolution beside plain loops, in both forms; its gradients beside finite differences."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from drawn import floats, seeds
from hypothesis import given
from jax.test_util import check_grads

from htd_jax.ops.conv import conv
from htd_jax.ops.deform_conv import deform_conv, deform_conv_by_rows

HEIGHT, WIDTH, INPUTS, OUTPUTS = 4, 5, 4, 3
STRIDES = pytest.mark.parametrize("stride", [1, 2])


def draw(*shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def out_shape(stride):
    return -(-HEIGHT // stride), -(-WIDTH // stride)


@functools.cache
def forms(stride):
    """Jitted: one image by gathers, and a batch of one by rows."""
    return (jax.jit(lambda x, offsets, kernel: deform_conv(x, offsets, kernel, stride)),
            jax.jit(lambda x, offsets, kernel: deform_conv_by_rows(x[None], offsets[None], kernel, stride)[0]))


def inputs(seed):
    return draw(HEIGHT, WIDTH, INPUTS, seed=seed), draw(3, 3, INPUTS, OUTPUTS, seed=seed + 1)


@pytest.mark.parametrize("stride, reach", [(1, 1), (1, 6), (2, 3)])
@pytest.mark.parametrize("whole", [False, True])
@given(floats((HEIGHT, WIDTH, 18), -1, 1), seeds)
def test_it_is_the_sum_of_its_taps(stride, reach, whole, offsets, seed):
    (x, kernel), (rows, columns) = inputs(seed), out_shape(stride)
    offsets = (np.round if whole else np.float32)(reach * offsets[:rows, :columns])
    expected = plain.deform_conv(x, offsets, kernel, stride)
    for form in forms(stride):
        np.testing.assert_allclose(form(x, offsets, kernel), expected, atol=2e-5)


@STRIDES
@given(seeds)
def test_without_offsets_it_is_a_convolution(stride, seed):
    x, kernel = inputs(seed)
    plainly = jax.lax.conv_general_dilated(x[None], kernel, (stride,) * 2, ((1, 1), (1, 1)),
                                           dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    for form in forms(stride):
        np.testing.assert_allclose(form(x, np.zeros((*out_shape(stride), 18), np.float32), kernel), plainly, atol=1e-5)


@pytest.mark.parametrize("far", [50, -50, 1e9, -1e9, np.inf, -np.inf])
def test_far_away_lie_zeros(far):
    x, kernel = inputs(0)
    for form in forms(1):
        assert not np.asarray(form(x, np.full((HEIGHT, WIDTH, 18), far, np.float32), kernel)).any()


@pytest.mark.parametrize("far", [50, 1e9])
def test_from_far_away_comes_no_gradient(far):
    x, kernel = inputs(0)
    offsets = jnp.full((HEIGHT, WIDTH, 18), far, jnp.float32)
    for form in forms(1):
        total = lambda *all, form=form: form(*all).sum()
        gradients = jax.grad(total, argnums=(0, 1, 2))(x, offsets, kernel)
        assert not any(np.asarray(gradient).any() for gradient in gradients)


def test_gradients_of_map_and_kernel_are_finite_differences():
    """In float64, of the form by gathers: that by rows sums in float32."""
    offsets = draw(HEIGHT, WIDTH, 18, seed=2)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(draw(*a.shape, seed=k, dtype=np.float64)) for k, a in enumerate(inputs(0)))
        check_grads(jax.jit(lambda x, kernel: deform_conv(x, jnp.asarray(offsets), kernel)), (x, kernel), order=1,
                    modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("form", [0, 1])
def test_gradient_of_the_offsets_is_that_of_finite_differences(form):
    """Positions are float32 whatever the map is; outputs are linear between whole offsets, so steps may be large."""
    x, kernel = inputs(0)
    rng = np.random.default_rng(2)
    offsets = (rng.uniform(.3, .7, (HEIGHT, WIDTH, 18)) + rng.integers(-2, 2, (HEIGHT, WIDTH, 18))).astype(np.float32)
    cotangent = draw(HEIGHT, WIDTH, OUTPUTS, seed=5)
    gradient = jax.grad(lambda offsets: (forms(1)[form](x, offsets, kernel) * cotangent).sum())(jnp.asarray(offsets))
    for place in [(0, 0, 8), (1, 2, 9), (3, 4, 0), (2, 1, 17), (0, 4, 3)]:
        step = np.zeros_like(offsets)
        step[place] = .25
        above, below = (np.float64(plain.deform_conv(x, offsets + sign * step, kernel) * cotangent).sum()
                        for sign in (1, -1))
        assert gradient[place] == pytest.approx((above - below) / .5, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_convolution_are_finite_differences(stride):
    with jax.enable_x64(True):
        x, kernel = draw(2, 6, 7, 3, seed=0, dtype=np.float64), draw(3, 3, 3, 4, seed=1, dtype=np.float64)
        form = lambda x, kernel: conv(x, kernel, (stride,) * 2, ((1, 1), (1, 1)), feature_group_count=1,
                                      lhs_dilation=(1, 1), rhs_dilation=(1, 1),
                                      dimension_numbers=("NHWC", "HWIO", "NHWC"))
        check_grads(jax.jit(form), (jnp.asarray(x), jnp.asarray(kernel)), order=1, modes=["rev"], rtol=1e-6)
