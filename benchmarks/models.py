"""The detectors that are measured: a configuration, its parameters, and the score that a wanted number of RoIs pass."""
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from htd_jax import config as config_lib
from htd_jax.models import functional
from htd_jax.models.detect import classify, view_proposals
from htd_jax.models.htd import matmul_precision
from tests.original import reference


def load(name):
    """`configs/<name>.py` with 80 classes, in float32 on a CPU and bfloat16 elsewhere."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.num_classes = 80
    config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return config_lib.validate(config)


def parameters(name, config):
    """(params, frozen) on the device: those of the golden figures, as when the original was timed; else fresh ones."""
    init = functional.functions(config).init
    if name not in reference.CHECKSUMS:
        return jax.jit(init)()
    state = reference.state(name)
    picked = tuple(_pick(shapes, state) for shapes in jax.eval_shape(init))
    return jax.tree.map(jnp.array, picked)  # copies: a step cannot change numpy's memory in place, and would keep both


def _pick(shapes, tree):
    """The part of `tree` that has the keys of `shapes`."""
    return {key: _pick(inner, tree[key]) for key, inner in shapes.items()} if isinstance(shapes, dict) else tree


def merged(config, params, frozen):
    """The model with these parameters; can be called while tracing."""
    return nnx.merge(nnx.graphdef(functional.functions(config).abstract), params, frozen)


def score_passed_by(count, params, frozen, batch, config):
    """The score that `count` RoIs of an image reach in some class, median over the batch.

    Random weights give all RoIs about the same score; with this in place of .05 as many are regressed as once trained.
    """
    def best(params, frozen, batch):
        model = merged(config, params, frozen)
        with matmul_precision(config.dtype):
            found = view_proposals(model, batch, False, config)
            logits = jax.vmap(lambda *view: classify(model, *view)[0])(found.view, found.boxes, found.valid)
        return jnp.where(found.valid, jax.nn.softmax(logits)[..., :-1].max(axis=-1), 0)

    scores = np.sort(jax.jit(best)(params, frozen, batch), axis=1)
    return float(np.median(scores[:, -min(count, scores.shape[1])]))


def regression_flops(config):
    """Floating-point operations of BA's four convolutions for one RoI."""
    settings = config.model
    widths = settings.fpn_channels, *[settings.ba_channels] * 3, settings.ba_out_channels
    return 2 * 49 * 9 * sum(a * b for a, b in zip(widths, widths[1:]))
