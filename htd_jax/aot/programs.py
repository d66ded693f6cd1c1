"""The programs that are compiled ahead of time, lowered from shapes alone."""
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from htd_jax import compiler, mesh as mesh_lib
from htd_jax.data.padding import buckets
from htd_jax.models import functional
from htd_jax.training.optimizer import build
from htd_jax.training.schedule import learning_rate
from htd_jax.training.state import init_state
from htd_jax.training.step import make_step

BOXES = 64  # ground-truth slots of an image


def lower_train(config: ConfigDict, mesh: Mesh, shape: tuple[int, int]) -> jax.stages.Lowered:
    """The training step that `train.py` runs, lowered for images of `shape` (h, w)."""
    functions = functional.functions(config)
    schedule = learning_rate(config, 1000)
    optimizer = build(config, schedule)
    step = make_step(functions.loss, optimizer, schedule, mesh, config)
    state = jax.eval_shape(lambda: init_state(*functions.init(), optimizer, config.ema))
    return step.lower(state, batch_of(config.batch_size, shape, BOXES))


def lower_detect(config: ConfigDict, mesh: Mesh, shape: tuple[int, int]) -> jax.stages.Lowered:
    """The detection function that `eval.py` runs, lowered for images of `shape` (h, w)."""
    functions = functional.functions(config)
    run = jax.jit(mesh_lib.under(mesh, functions.detect), out_shardings=mesh_lib.split(mesh),
                  in_shardings=(mesh_lib.replicated(mesh), mesh_lib.split(mesh)),
                  compiler_options=compiler.detect_options(mesh_lib.platform(mesh)))
    return run.lower(jax.eval_shape(functions.init), batch_of(config.test.batch_size, shape, 0))


def batch_of(count: int, shape: tuple[int, int], boxes: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `count` images of `shape` (h, w) with `boxes` slots of ground truth (0: none)."""
    pair = lambda dtype: jax.ShapeDtypeStruct((count, 2), dtype)
    batch = dict(image=jax.ShapeDtypeStruct((count, *shape, 3), jnp.uint8), size=pair(jnp.int32),
                 padded=pair(jnp.int32), scale=pair(jnp.float32))
    if boxes:
        batch |= dict(boxes=jax.ShapeDtypeStruct((count, boxes, 4), jnp.float32),
                      labels=jax.ShapeDtypeStruct((count, boxes), jnp.int32),
                      valid=jax.ShapeDtypeStruct((count, boxes), bool))
    return batch


def largest_bucket(config: ConfigDict, what: str) -> tuple[int, int]:
    """The (h, w) of the largest landscape bucket that `what` meets."""
    data = config.data
    shapes = buckets(data.scale, data.short_range) if what == "train" else buckets(config.test.scale)
    return max((shape for shape in shapes if shape[0] <= shape[1]), key=math.prod)
