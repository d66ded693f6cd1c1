"""The sharded step with a small stand-in for the detector: randomness, accumulation, EMA, frozen tensors."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax import config as config_lib, mesh as mesh_lib
from htd_jax.errors import UserError
from htd_jax.training import optimizer as optimizer_lib, schedule as schedule_lib, step as step_lib
from htd_jax.training.state import init_state


def loss_fn(params, frozen, batch, key):
    """Least squares with dropout, normalised over the batch."""
    x = batch["image"] * jax.random.bernoulli(key, 0.5, batch["image"].shape)
    error = x @ params["layers"][0]["kernel"] + frozen["bias"][None] - batch["target"]
    loss = jnp.mean(error**2)
    return loss, dict(loss=loss)


def start(**keys):
    config = config_lib.default_config()
    config.update(dict(warmup_steps=0, lr=0.1, momentum=0.0, weight_decay=0.0) | keys)
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    schedule = schedule_lib.learning_rate(config, 10)
    sgd = optimizer_lib.sgd(config, schedule)
    params = {"layers": {0: {"kernel": jnp.ones((3, 2))}}}
    state = mesh_lib.replicate(init_state(params, {"bias": jnp.ones(2)}, sgd, config.ema), mesh)
    return step_lib.make_step(loss_fn, sgd, schedule, mesh, config), state, mesh


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(rows, 3)).astype(np.float32),
            "target": rng.normal(size=(rows, 2)).astype(np.float32)}


def kernel(state, part="params"):
    return np.asarray(state[part]["layers"][0]["kernel"])


def test_step_is_one_update_of_trainable_tensors_only():
    step, state, mesh = start()
    data = batch()
    key = jax.random.fold_in(jax.random.key(0), 0)
    gradient = jax.grad(lambda p: loss_fn(p, state["frozen"], data, key)[0])(state["params"])
    want = 1 - 0.1 * np.asarray(gradient["layers"][0]["kernel"])
    state, logs = step(state, mesh_lib.put_local_rows(data, mesh))
    np.testing.assert_allclose(kernel(state), want, rtol=1e-6)
    np.testing.assert_allclose(logs["grad_norm"], np.linalg.norm(gradient["layers"][0]["kernel"]), rtol=1e-6)
    assert float(logs["lr"]) == pytest.approx(0.1) and int(state["step"]) == 1
    np.testing.assert_array_equal(state["frozen"]["bias"], np.ones(2))


def test_randomness_is_of_seed_and_step():
    losses = []
    for seed in (0, 0, 1):
        step, state, mesh = start(seed=seed)
        data = mesh_lib.put_local_rows(batch(), mesh)
        first, logs0 = step(state, data)
        _, logs1 = step(first, data)
        losses.append((float(logs0["loss"]), float(logs1["loss"])))
    assert losses[0] == losses[1] and losses[0][0] != losses[2][0] and losses[0][0] != losses[0][1]


def test_accumulation_is_the_mean_over_micro_batches():
    step, state, mesh = start(accumulate=2)
    data, key = batch(), jax.random.fold_in(jax.random.key(0), 0)
    values = [jax.value_and_grad(lambda p, d=d, i=i: loss_fn(p, state["frozen"], d, jax.random.fold_in(key, i))[0])(
        state["params"]) for i, d in enumerate([{k: v[i::2] for k, v in data.items()} for i in range(2)])]
    want = 1 - 0.1 * np.mean([g["layers"][0]["kernel"] for _, g in values], axis=0)
    state, logs = step(state, mesh_lib.put_local_rows(data, mesh))
    np.testing.assert_allclose(kernel(state), want, rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], np.mean([v for v, _ in values]), rtol=1e-6)


def test_ema_follows_the_parameters():
    step, state, mesh = start(ema=0.75)
    state, _ = step(state, mesh_lib.put_local_rows(batch(), mesh))
    np.testing.assert_allclose(kernel(state, "ema"), 0.75 + 0.25 * kernel(state), rtol=1e-6)


def test_one_compile_for_each_shape():
    step, state, mesh = start()
    for rows in (4, 2, 4, 2, 2):
        state, _ = step(state, mesh_lib.put_local_rows(batch(rows), mesh))
    assert step._cache_size() == 2


def test_batch_must_split_over_the_devices():
    mesh = mesh_lib.make_mesh(jax.devices()[:1])
    mesh_lib.check_batch_size(4, 2, mesh)
    with pytest.raises(UserError, match="batch_size .=3. must be divisible by the number of devices .=1. in 2"):
        mesh_lib.check_batch_size(3, 2, mesh)
