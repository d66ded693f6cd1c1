"""The optimiser. SGD as the original's: weight decay on every tensor that has ever had a gradient, momentum, no
Nesterov. Or AdamW.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


class DecayState(NamedTuple):
    """For every tensor, a bool: whether it has had a gradient that is not zero."""

    touched: optax.Params


def decay_once_touched(weight_decay: float) -> optax.GradientTransformation:
    """Adds `weight_decay * w` to the gradient of each tensor, from its first non-zero gradient on.

    PyTorch skips a parameter that has no gradient yet, which happens to PGraph's layers of levels that no RoI has used,
    and decays it ever after. Without a gradient there is no momentum either, so a tensor that was never touched stays
    exactly as it was initialised.
    """
    def init(params):
        return DecayState(jax.tree.map(lambda w: jnp.zeros((), bool), params))

    def update(gradients, state, params):
        touched = jax.tree.map(lambda t, g: t | jnp.any(g != 0), state.touched, gradients)
        decayed = jax.tree.map(lambda g, w, t: g + jnp.where(t, weight_decay, 0.0) * w, gradients, params, touched)
        return decayed, DecayState(touched)

    return optax.GradientTransformation(init, update)


def build(config: ConfigDict, schedule: Callable) -> optax.GradientTransformation:
    """The optimiser that config.optimizer names; `schedule` maps the number of updates done before to the rate."""
    return dict(sgd=sgd, adamw=adamw)[config.optimizer](config, schedule)


def sgd(config: ConfigDict, schedule: Callable) -> optax.GradientTransformation:
    """Builds the optimiser: `v = momentum v + (g + weight_decay w)`, `w -= lr v`, v starting as the first gradient.

    Uses config.momentum, weight_decay and clip_norm (0: gradients are not clipped). `schedule` maps the number of
    updates done before to the learning rate. The result's `update` needs the parameters.
    """
    return optax.chain(*_clipping(config), decay_once_touched(config.weight_decay), optax.trace(config.momentum),
                       optax.scale_by_learning_rate(schedule))


def adamw(config: ConfigDict, schedule: Callable) -> optax.GradientTransformation:
    """Builds AdamW (Adam's betas .9 and .999), as `sgd`; weight decay acts on kernels, not on biases and norms."""
    kernels = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)
    return optax.chain(*_clipping(config), optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels))


def _clipping(config):
    return [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
