"""The detector as pure functions over pure dicts of arrays: what training, evaluation and export compile."""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from htd_jax.models.detect import detect
from htd_jax.models.htd import HTD, build, trainable
from htd_jax.models.losses import losses


class Functions(NamedTuple):
    """Pure functions of one configuration.

    Attributes:
        abstract: the model of shapes; no array behind it.
        init: () -> (params, frozen): pure dicts of what training updates and of all the rest, freshly initialised from
            config.seed. Can be jitted.
        loss: (params, frozen, batch, key) -> (total, logs).
        detect: (states, batch) -> detections; `states`: a tuple of pure dicts that together hold the whole model.
    """

    abstract: HTD
    init: Callable
    loss: Callable
    detect: Callable


def functions(config):
    """The `Functions` of HTD; config.model.num_classes must be set."""
    def make():
        return build(config.model, nnx.Rngs(config.seed), jnp.dtype(config.dtype))

    abstract = nnx.eval_shape(make)
    graphdef = nnx.graphdef(abstract)
    return Functions(
        abstract,
        init=lambda: split(make(), config),
        loss=lambda params, frozen, batch, key: losses(nnx.merge(graphdef, params, frozen), batch, key, config),
        detect=lambda states, batch: detect(nnx.merge(graphdef, *states), batch, config))


def split(model, config):
    """Returns (params, frozen), pure dicts of the parameters that training updates and of all the rest."""
    _, params, frozen = nnx.split(model, trainable(config.model), ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)
