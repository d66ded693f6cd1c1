"""A detector out of a checkpoint, compiled for use: `restore`, then `make_detect_fn`; and what its labels mean."""
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from htd_jax.data import coco_classes
from htd_jax.errors import UserError
from htd_jax.models.detection import detect
from htd_jax.models.htd import build
from htd_jax.weights import loading

_CLASSIFIER = "roi_head.bbox_head.0.fc_cls.bias"  # one entry a class, and the background


def restore(config, source):
    """Reads a checkpoint's weights into the model that `config.model` describes.

    Args:
      config: `config.model.num_classes` is set here from the weights where it is unset.
      source: any form of `--checkpoint`.

    Returns:
      (graphdef, state): `nnx.merge` of them is the model. State is a pure dict of float32 arrays on the default device.

    Raises:
      UserError: the checkpoint cannot be read, or is of another model; lists the tensors that do not fit.
    """
    tensors = loading.load_tensors(source)
    if config.model.num_classes is None and _CLASSIFIER in tensors:
        config.model.num_classes = len(tensors[_CLASSIFIER]) - 1
    model = nnx.eval_shape(lambda: build(config.model, nnx.Rngs(0), jnp.dtype(config.dtype)))
    tree = loading.load_into(loading.tree_of(model), tensors, source=source, backbone_only=False)
    return nnx.graphdef(model), jax.tree.map(jnp.asarray, tree)


def make_detect_fn(graphdef, state, config, mesh=None):
    """Compiles `models.detection.detect` with its parameters closed over.

    Returns:
      batch -> detections, asynchronous: arrays that are ready later. Compiles once for each shape of batch. Under a
      mesh, the batch's rows are split over this host's devices, which each hold a copy of the parameters.
    """
    def run(state, batch):
        return detect(nnx.merge(graphdef, state), batch, config)

    if mesh is None:
        compiled = jax.jit(run)
        return lambda batch: compiled(state, batch)
    everywhere = NamedSharding(mesh.local_mesh, PartitionSpec())
    rows = NamedSharding(mesh.local_mesh, PartitionSpec(mesh.axis_names))
    compiled = jax.jit(run, in_shardings=(everywhere, rows), out_shardings=rows)
    state = jax.device_put(state, everywhere)
    return lambda batch: compiled(state, jax.device_put(batch, rows))


def categories(source, num_classes):
    """((id, name), ...) in the order of the labels: as the training run noted them, else COCO's or made-up names."""
    if not pathlib.Path(source).is_dir():
        return coco_classes.categories(num_classes)
    from htd_jax.training import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
    return tuple(checkpoints.load_categories(source))


def check_classes(wanted, config, source):
    """Raises UserError where a checkpoint's labels stand for other classes than the categories of a data set."""
    names = [name for _, name in wanted]
    if not pathlib.Path(source).is_dir():
        if config.model.num_classes != len(names):
            raise UserError(f"{source} has {config.model.num_classes} classes, but the annotations list {len(names)}")
        return
    trained = [name for _, name in categories(source, config.model.num_classes)]
    if trained != names:
        raise UserError(f"{source} was trained on {_listed(trained)}, but the annotations list {_listed(names)}")


def _listed(names):
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
