"""The detector as the training loop sees it: pure functions over two pure dicts, `params` (trained) and `frozen`."""
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
        weights: () -> nested dict of all parameters by path, numpy arrays out of config.init_from; shapes alone
            (jax.ShapeDtypeStruct) where it has none. Raises UserError where it does not fit.
        loss: (params, frozen, batch, key) -> (total, logs).
        detect: (params, frozen, batch) -> detections.
    """
    init: Callable
    weights: Callable
    loss: Callable
    detect: Callable


def functions(config):
    """The Functions of HTD; config.model.num_classes must be set."""
    def make():
        return build(config.model, nnx.Rngs(config.seed), jnp.dtype(config.dtype))

    def parts(model):
        graphdef, params, frozen = nnx.split(model, trainable(config.model), ...)
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)

    shapes = nnx.eval_shape(make)
    graphdef = parts(shapes)[0]

    def weights():
        tensors = loading.load_tensors(config.init_from)
        return loading.load_into(loading.tree_of(shapes), tensors, source=config.init_from,
                                 new_classifier=config.new_classifier)

    return Functions(
        init=lambda: parts(make())[1:],
        weights=weights,
        loss=lambda params, frozen, batch, key: losses(nnx.merge(graphdef, params, frozen), batch, key, config),
        detect=lambda params, frozen, batch: detect(nnx.merge(graphdef, params, frozen), batch, config))


def fill(tree, weights):
    """Returns `tree`, a nested dict of arrays on devices, with the arrays that `weights` has at the same paths."""
    if isinstance(tree, dict):
        return {key: fill(value, weights[key]) for key, value in tree.items()}
    if isinstance(weights, jax.ShapeDtypeStruct):
        return tree
    return jax.make_array_from_process_local_data(tree.sharding, np.asarray(weights, tree.dtype))


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
