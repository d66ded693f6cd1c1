"""A detector out of a checkpoint, compiled for use: `restore`, then `make_detect_fn`."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

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
    state = local_copy(state, mesh)
    return lambda batch: compiled(state, jax.device_put(batch, rows))


def local_copy(tree, mesh):
    """Arrays that are the same on all devices of all hosts -> a copy on each device of this host."""
    local = jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
    return jax.device_put(local, NamedSharding(mesh.local_mesh, PartitionSpec()))
