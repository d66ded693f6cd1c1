"""Compile the real training step or detection function for a TPU that is not there.

    python -m htd_jax.aot --config configs/htd_r50.py --topology v5e:1x1 --config.dtype=bfloat16 --config.batch_size=8

Needs `pip install libtpu` and no TPU. Prints one JSON object: `peak_bytes_per_device`, `flops` (of the whole program;
loops count once), `bytes_accessed`, `compile_seconds`, and whether it `fits` the device's memory.
"""
import json
import math
import os
import time

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies

from htd_jax import cli, mesh as mesh_lib
from htd_jax.data.padding import buckets
from htd_jax.errors import UserError
from htd_jax.models import functional
from htd_jax.training.optimizer import sgd
from htd_jax.training.schedule import learning_rate
from htd_jax.training.state import init_state
from htd_jax.training.step import make_step

MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a chip
BOXES = 64  # ground-truth slots of an image


def compile_for(config, topology, what, shape):
    """Compiles `what` ('train' or 'detect') for `topology` ('v5e:2x2'); returns the facts as a dict."""
    mesh = mesh_lib.make_mesh(_devices(topology))
    lowered = {"train": lower_train, "detect": lower_detect}[what](config, mesh, shape)
    start = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    peak = memory.peak_memory_in_bytes
    return dict(what=what, topology=topology, image=[*shape], batch_size=_batch_size(config, what),
                peak_bytes_per_device=peak, flops=cost["flops"], bytes_accessed=cost["bytes accessed"],
                compile_seconds=round(seconds, 1), fits=peak < MEMORY[topology.split(":")[0]] * 2**30)


def lower_train(config, mesh, shape):
    """The training step that `train.py` runs, lowered for images of `shape` (h, w)."""
    functions = functional.functions(config)
    schedule = learning_rate(config, 1000)
    optimizer = sgd(config, schedule)
    step = make_step(functions.loss, optimizer, schedule, mesh, config)
    state = jax.eval_shape(lambda: init_state(*functions.init(), optimizer, config.ema))
    return step.lower(state, batch_of(config.batch_size, shape, BOXES))


def lower_detect(config, mesh, shape):
    """The detection function that `eval.py` runs, lowered for images of `shape` (h, w)."""
    functions = functional.functions(config)
    run = jax.jit(functions.detect, in_shardings=(mesh_lib.replicated(mesh), mesh_lib.split(mesh)),
                  out_shardings=mesh_lib.split(mesh))
    return run.lower(jax.eval_shape(functions.init), batch_of(config.test.batch_size, shape, 0))


def batch_of(count, shape, boxes):
    """Shapes and dtypes of a batch of `count` images of `shape` (h, w) with `boxes` slots of ground truth (0: none)."""
    pair = lambda dtype: jax.ShapeDtypeStruct((count, 2), dtype)
    batch = dict(image=jax.ShapeDtypeStruct((count, *shape, 3), jnp.uint8), size=pair(jnp.int32),
                 padded=pair(jnp.int32), scale=pair(jnp.float32))
    if boxes:
        batch |= dict(boxes=jax.ShapeDtypeStruct((count, boxes, 4), jnp.float32),
                      labels=jax.ShapeDtypeStruct((count, boxes), jnp.int32),
                      valid=jax.ShapeDtypeStruct((count, boxes), bool))
    return batch


def largest_bucket(config, what):
    """The (h, w) of the largest landscape bucket that `what` meets."""
    data = config.data
    shapes = buckets(data.scale, data.short_range) if what == "train" else buckets(config.test.scale)
    return max((shape for shape in shapes if shape[0] <= shape[1]), key=math.prod)


def _batch_size(config, what):
    return config.batch_size if what == "train" else config.test.batch_size


def _devices(topology):
    """The devices of a topology that is described, not there."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask what it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken: several of these may run at once
    name = topology.split(":")[0]
    if name not in MEMORY:
        raise UserError(f"--topology (={topology}): must begin with one of {', '.join(MEMORY)}, as in v5e:1x1")
    single = dict(chips_per_host_bounds=(1, 1, 1)) if topology.endswith(":1x1") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **single).devices
    except Exception as error:  # whatever the plugin raises; mostly that it is not installed
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology (={topology}): cannot be described: {reason}. Is libtpu installed "
                        "(pip install libtpu)?") from error


def main(_):
    args = flags.FLAGS
    config = args.config
    if config.model.num_classes is None:
        config.model.num_classes = 80
    shape = tuple(map(int, args.image)) or largest_bucket(config, args.what)
    print(json.dumps(compile_for(config, args.topology, args.what, shape)))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("topology", "v5e:1x1", "Chip and grid, as in v5e:1x1, v5e:2x2, v6e:2x4.")
    flags.DEFINE_enum("what", "train", ["train", "detect"], "Which program.")
    flags.DEFINE_list("image", [], "Height and width of the images; unset: the largest bucket of the configuration.")
    cli.run(main, __doc__)
