"""One update of the parameters, compiled once for each shape of batch and sharded over the mesh."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from htd_jax import compiler, mesh as mesh_lib
from htd_jax.models.htd import matmul_precision


def make_step(loss_fn: Callable, optimizer: optax.GradientTransformation, schedule: Callable, mesh: Mesh,
              config: ConfigDict) -> Callable:
    """Builds the jitted update.

    Args:
        loss_fn: (params, frozen, batch, key) -> (total, logs), scalars; normalises over the whole batch it is given.
        schedule: updates done before -> learning rate; only logged here.
        mesh: batches are split over it, the state is on every device.
        config: uses seed, accumulate, ema, dtype.
    Returns:
        step(state, batch) -> (state, logs). The state given is consumed. Logs: those of loss_fn, plus `grad_norm` (of
        the gradient before clipping) and `lr`. The randomness is a function of seed and step alone. With
        accumulate = k, micro-batch i is rows i::k, and losses and gradients are means over the micro-batches.
    """
    def gradients(params, frozen, batch, key):
        with matmul_precision(config.dtype):  # here too: custom gradients are traced after loss_fn has returned
            (_, logs), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, key)
        return grads, logs

    def accumulated(params, frozen, batch, key):
        def add(total, inputs):
            i, micro = inputs
            new = gradients(params, frozen, micro, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, new), None
        micros = jax.tree.map(lambda x: _every_kth(x, config.accumulate), batch)
        shapes = jax.eval_shape(gradients, params, frozen, jax.tree.map(lambda x: x[0], micros), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(config.accumulate), micros))
        return jax.tree.map(lambda x: x / config.accumulate, total)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        compute = gradients if config.accumulate == 1 else accumulated
        grads, logs = compute(state["params"], state["frozen"], batch, key)
        grads = jax.lax.optimization_barrier(grads)  # all complete before weights change in place, else all are copied
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = state | dict(step=state["step"] + 1, params=params, optimizer=optimizer_state)
        if "ema" in state:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - config.ema)
        return new, logs | dict(grad_norm=optax.tree.norm(grads), lr=schedule(state["step"]))

    everywhere = mesh_lib.replicated(mesh)
    return jax.jit(mesh_lib.under(mesh, step), in_shardings=(everywhere, mesh_lib.split(mesh)),
                   out_shardings=everywhere, donate_argnums=0,
                   compiler_options=compiler.step_options(mesh_lib.platform(mesh)))


def _every_kth(x, k):
    """[B, ...] -> [k, B / k, ...], row i of the result being x[i::k]: each device keeps the rows that it has."""
    return jnp.moveaxis(x.reshape(x.shape[0] // k, k, *x.shape[1:]), 1, 0)
