"""The optimiser and its schedule against the recipe written out in numpy."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from htd_jax import config as config_lib
from htd_jax.training import optimizer, schedule


def config(**keys):
    c = config_lib.default_config()
    c.update(keys)
    return c


def reference_rate(i, lr=0.02, per_epoch=100, milestones=(8, 11), warmup=500):
    lr *= 0.1 ** sum(i >= m * per_epoch for m in milestones)
    return lr * (1 - (1 - i / warmup) * (1 - 0.001)) if i < warmup else lr


@pytest.mark.parametrize("step", [0, 1, 250, 499, 500, 799, 800, 1099, 1100, 1199])
def test_schedule(step):
    rate = schedule.learning_rate(config(), steps_per_epoch=100)
    assert float(rate(step)) == pytest.approx(reference_rate(step), rel=1e-6)
    assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(reference_rate(step), rel=1e-6)


def test_schedule_warm_up_across_a_milestone_none_at_all_and_lr_as_set():
    rate = schedule.learning_rate(config(), steps_per_epoch=40)
    assert float(rate(400)) == pytest.approx(reference_rate(400, per_epoch=40), rel=1e-6)
    rate = schedule.learning_rate(config(warmup_steps=0, lr=0.5, batch_size=2, milestones=()), 10)
    assert [float(rate(i)) for i in (0, 1000)] == [0.5, 0.5]


def test_length():
    assert schedule.total_steps(config(), 10) == 120
    assert schedule.total_steps(config(total_steps=7), 10) == 7


def numpy_sgd(weights, gradients, rates, momentum=0.9, decay=1e-4):
    weights, v = dict(weights), {}
    for gradient, lr in zip(gradients, rates):
        for name, g in gradient.items():
            if name not in v and not g.any():
                continue  # PyTorch: no gradient yet
            g = g + decay * weights[name]
            v[name] = momentum * v[name] + g if name in v else g
            weights[name] = weights[name] - lr * v[name]
    return weights


def run(c, weights, gradients, per_epoch):
    sgd = optimizer.build(c, schedule.learning_rate(c, per_epoch))
    state = sgd.init(weights)
    for gradient in gradients:
        updates, state = sgd.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights


def test_sgd_is_the_recipe():
    rng = np.random.default_rng(0)
    def normal():
        return rng.normal(size=(3, 2)).astype(np.float32)
    weights = {name: normal() for name in ("kernel", "late", "never")}
    gradients = [{"kernel": normal(), "never": np.zeros((3, 2), np.float32), "late": normal() * np.float32(i in (3, 5))}
                 for i in range(12)]
    got = run(config(weight_decay=1e-2), weights, gradients, per_epoch=1)
    want = numpy_sgd(weights, gradients, [reference_rate(i, per_epoch=1) for i in range(12)], decay=1e-2)
    for name in weights:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    np.testing.assert_array_equal(got["never"], weights["never"])
    assert np.abs(got["late"] - weights["late"]).max() > 1e-6


def test_clipping():
    weights = {"w": jnp.zeros(2)}
    c = config(clip_norm=1.0, warmup_steps=0, lr=1.0, milestones=())
    np.testing.assert_allclose(run(c, weights, [{"w": jnp.array([3.0, 4.0])}], 1)["w"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(run(c, weights, [{"w": jnp.array([0.3, 0.4])}], 1)["w"], [-0.3, -0.4], rtol=1e-6)


def test_cosine_ends_at_zero_and_starts_after_the_warm_up():
    rate = schedule.learning_rate(config(schedule="cosine", lr=0.1, total_steps=110, warmup_steps=10), 10)
    assert float(rate(10)) == pytest.approx(0.1) and float(rate(5)) == pytest.approx(0.1 * 0.5005)
    assert float(rate(60)) == pytest.approx(0.05) and float(rate(110)) == pytest.approx(0, abs=1e-8)
    assert float(rate(85)) == pytest.approx(0.1 * (1 + np.cos(0.75 * np.pi)) / 2)
    assert np.isfinite(float(schedule.learning_rate(config(schedule="cosine", total_steps=1), 10)(0)))


def numpy_adamw(w, gradients, rates, decay):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for i, (g, lr) in enumerate(zip(gradients, rates), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * (m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8) + decay * w)
    return w


def test_adamw_is_the_recipe_and_decays_kernels_alone():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = {"kernel": normal(3, 2), "bias": normal(2)}
    gradients = [{"kernel": normal(3, 2), "bias": normal(2)} for _ in range(6)]
    c = config(optimizer="adamw", lr=0.01, warmup_steps=0, milestones=(), weight_decay=0.05)
    got = run(c, weights, gradients, per_epoch=1)
    for name, decay in (("kernel", 0.05), ("bias", 0.0)):
        want = numpy_adamw(weights[name], [g[name] for g in gradients], [0.01] * 6, decay)
        np.testing.assert_allclose(got[name], want, rtol=1e-5)
