"""The state of training: where it comes from, and what is in it."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from htd_jax import config as config_lib, mesh as mesh_lib
from htd_jax.checkpoints import Checkpoints
from htd_jax.errors import UserError
from htd_jax.models.functional import Functions
from htd_jax.weights import loading


def initial_state(functions: Functions, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh,
                  checkpoints: Checkpoints, other_classes: bool = False) -> tuple[int, dict]:
    """Returns (updates done, state on the devices): the newest checkpoint, else `init_from`, else fresh weights.

    Shapes come first: nothing is built that a checkpoint replaces. With `other_classes` the classifiers of `init_from`
    are left out, even where their number of classes is the same. Raises UserError where a checkpoint or init_from
    does not fit the model.
    """
    everywhere = mesh_lib.replicated(mesh)

    def new_state(params, frozen):
        return init_state(params, frozen, optimizer, config.ema)

    shapes = jax.eval_shape(lambda: new_state(*functions.init()))
    restored = checkpoints.restore(jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes))
    if restored:
        return restored
    # Before anything is compiled, since it may not fit.
    weights = init_from(functions, config, other_classes) if config.init_from else None
    params, frozen = jax.jit(functions.init, out_shardings=everywhere)()
    if weights is not None:
        params, frozen = _fill(params, weights), _fill(frozen, weights)
    return 0, jax.jit(new_state, out_shardings=everywhere)(params, frozen)


def init_state(params: dict, frozen: dict, optimizer: optax.GradientTransformation, ema: float | int = 0.0) -> dict:
    """Returns the state of training, a dict of pure dicts.

    `step`: int32, updates done; `params`: trainable parameters; `frozen`: parameters and statistics that stay as they
    are and never reach the optimiser; `optimizer`: optax's state; `ema`: averaged params, only where ema > 0.
    """
    state = dict(step=jnp.zeros((), jnp.int32), params=params, frozen=frozen, optimizer=optimizer.init(params))
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if ema else {})


def changed_settings(about: dict, config: ConfigDict) -> list[str]:
    """What `config` has otherwise than the configuration that was saved with a step (`about`)."""
    try:
        before = config_lib.from_json(json.dumps(about["config"]))
    except (KeyError, UserError):  # of another version
        return []
    return list(config_lib.differences(config, before, "before").values())


def init_from(functions: Functions, config: ConfigDict, other_classes: bool = False) -> dict:
    """Nested dict of all parameters by path: arrays of config.init_from; shapes alone where it has none."""
    tensors, tree = loading.load_tensors(config.init_from), loading.tree_of(functions.abstract)
    if other_classes:
        tensors = loading.without_classifiers(tree, tensors)
    return loading.load_into(tree, tensors, source=config.init_from,
                             new_classifier=config.new_classifier)


def _fill(tree, weights):
    """Returns `tree`, a nested dict of arrays on devices, with the arrays that `weights` has at the same paths."""
    if isinstance(tree, dict):
        return {key: _fill(value, weights[key]) for key, value in tree.items()}
    if isinstance(weights, jax.ShapeDtypeStruct):
        return tree
    return jax.make_array_from_process_local_data(tree.sharding, np.asarray(weights, tree.dtype))
