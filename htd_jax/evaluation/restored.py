"""A detector restored from a checkpoint: its weights, and what its labels mean."""
import os
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from htd_jax.data import coco_classes
from htd_jax.errors import UserError
from htd_jax.models import functional
from htd_jax.weights import loading


def restore(config: ConfigDict, source: str | os.PathLike) -> dict:
    """Reads a checkpoint's weights into the model that `config.model` describes.

    Args:
      config: `config.model.num_classes` is set here from the weights where it is unset.
      source: any form of `--checkpoint`.
    Returns:
      Pure dict of float32 arrays on the default device: `functional.functions(config).detect` takes `(it,)`.
    Raises UserError: the checkpoint cannot be read, or is of another model; lists the tensors that do not fit.
    """
    tensors = loading.load_tensors(source)
    if config.model.num_classes is None:
        config.model.num_classes = loading.num_classes(tensors)
    shapes = loading.tree_of(functional.functions(config).abstract)
    return jax.tree.map(jnp.asarray, loading.load_into(shapes, tensors, source=source, backbone_only=False))


def categories(source: str | os.PathLike, num_classes: int) -> tuple[tuple[int, str], ...]:
    """The (id, name) of each label: those of the training run, else COCO's or made-up names."""
    if not pathlib.Path(source).is_dir():
        return coco_classes.categories(num_classes)
    from htd_jax import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
    return tuple(checkpoints.load_categories(source))


def check_classes(wanted: tuple[tuple[int, str], ...], config: ConfigDict, source: str | os.PathLike) -> None:
    """Raises UserError where a checkpoint's labels stand for other classes than the categories of a dataset."""
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
