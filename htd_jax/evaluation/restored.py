"""A detector restored from a checkpoint: its weights, and what its labels mean."""
import json
import logging
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from htd_jax import config as config_lib, mesh, paths
from htd_jax.data import classes, coco_classes
from htd_jax.errors import UserError
from htd_jax.models import functional
from htd_jax.weights import loading

log = logging.getLogger(__name__)
_DECIDING = "model.", "test.", "data.pad_to", "dtype"  # keys on which detections depend
_HARMLESS = "test.batch_size", "model.roi_align"


def restore(config: ConfigDict, source: str | os.PathLike) -> dict:
    """Reads a checkpoint's weights into the model that `config.model` describes.

    Args:
      config: `config.model.num_classes` is set here from the weights where it is unset.
      source: any form of `--checkpoint`.
    Returns:
      Pure dict of float32 arrays on the default device: `functional.functions(config).detect` takes `(it,)`.
    Raises UserError: the checkpoint cannot be read, or is of another model; lists the tensors that do not fit.
    """
    mesh.find_devices()
    _say_differences(config, source)
    tensors = loading.load_tensors(source)
    if config.model.num_classes is None:
        config.model.num_classes = loading.num_classes(tensors)
    if config.model.num_classes is None:
        raise UserError(f"{source} has no classifier, so it is no whole detector; a backbone is for config.init_from "
                        "of train.py")
    shapes = loading.tree_of(functional.functions(config).abstract)
    return jax.tree.map(jnp.asarray, loading.load_into(shapes, tensors, source=source, backbone_only=False))


def categories(source: str | os.PathLike, num_classes: int) -> tuple[tuple[int, str], ...]:
    """The (id, name) of each label: those of the training run, else COCO's or made-up names."""
    if not paths.of(source).is_dir():
        return coco_classes.categories(num_classes)
    from htd_jax import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
    return tuple(checkpoints.load_categories(source))


def check_classes(wanted: Sequence[tuple[int | str, str]], config: ConfigDict,
                  source: str | os.PathLike) -> Int32[np.ndarray, " K"] | None:
    """The label in a data set, whose categories are `wanted`, of each class of a checkpoint; None where they are equal.

    Raises UserError where they cannot be matched by name, or, as a file of weights has no names, by number.
    """
    trained = _stored_categories(source)
    if trained is not None:
        return classes.scored_labels(trained, wanted, str(source), "the annotations")
    if config.model.num_classes != len(wanted):
        raise UserError(f"{source} has {config.model.num_classes} classes, but the annotations list {len(wanted)}")
    return None


def _say_differences(config, source):
    """Warns of keys that change detections and are not as in the run that a checkpoint is of."""
    if not paths.of(source).is_dir():
        return
    from htd_jax import checkpoints
    try:
        run = checkpoints.load_config(source)
    except UserError:  # a step that was copied alone, or a key of another version
        return
    run.test.score = min(config.test.score, run.test.score)  # predict.py lowers it to what is shown
    differing = [line for key, line in config_lib.differences(config, run, "the run's").items()
                 if key.startswith(_DECIDING) and key not in _HARMLESS]
    if differing:
        log.warning("not as in the run of %s: %s", source, ", ".join(differing))


def _stored_categories(source):
    """The (id, name) of each label, or None where the source has no names."""
    if not paths.of(source).is_dir():
        return None
    from htd_jax import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
    found = checkpoints.stored_categories(source)
    if found is None:
        log.warning("%s has no names of its classes: they are taken in the order of the annotations", source)
    return found


def best_score(source: str | os.PathLike) -> tuple[float, paths.Path] | None:
    """The score with the best F1 in the last evaluation of a workdir, and the file that says so; None without one."""
    path = paths.of(source) / "eval" / "metrics.json"
    try:
        score = float(json.loads(path.read_bytes())["best_f1_score_threshold"])
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or its writing was interrupted
        return None
    return (score, path) if score >= 0 else None
