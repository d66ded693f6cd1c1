"""The detector as the training loop sees it: pure functions over two pure dicts, `params` (trained) and `frozen`."""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from htd_jax.models.detection import detect
from htd_jax.models.htd import build, trainable
from htd_jax.models.training import losses
from htd_jax.weights import loading


class Functions(NamedTuple):
    """What training needs of a model.

    Attributes:
        init: () -> (params, frozen), freshly initialised from config.seed. Can be jitted.
        load: (params, frozen) -> the same with the weights of config.init_from in them.
        loss: (params, frozen, batch, key) -> (total, logs).
        detect: (params, frozen, batch) -> detections.
    """
    init: Callable
    load: Callable
    loss: Callable
    detect: Callable


def functions(config):
    """The Functions of HTD; config.model.num_classes must be set."""
    def make():
        return build(config.model, nnx.Rngs(config.seed), jnp.dtype(config.dtype))

    def parts(model):
        graphdef, params, frozen = nnx.split(model, trainable(config.model), ...)
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)

    graphdef = parts(nnx.eval_shape(make))[0]

    def load(params, frozen):
        model = nnx.merge(graphdef, params, frozen)
        loading.initialise(model, config.init_from, config)
        return parts(model)[1:]

    return Functions(
        init=lambda: parts(make())[1:],
        load=load,
        loss=lambda params, frozen, batch, key: losses(nnx.merge(graphdef, params, frozen), batch, key, config),
        detect=lambda params, frozen, batch: detect(nnx.merge(graphdef, params, frozen), batch, config))


def sharded_detect(detect_fn, mesh):
    """Compiles `Functions.detect` once for all evaluations of a run.

    Returns:
        (params, frozen, batch of numpy arrays) -> detections, with the rows split over this host's devices: hosts
        evaluate different images and need not agree on shapes.
    """
    everywhere = NamedSharding(mesh.local_mesh, PartitionSpec())
    rows = NamedSharding(mesh.local_mesh, PartitionSpec("data"))
    compiled = jax.jit(detect_fn, in_shardings=(everywhere, everywhere, rows), out_shardings=rows)
    return lambda params, frozen, batch: compiled(params, frozen, jax.device_put(batch, rows))
