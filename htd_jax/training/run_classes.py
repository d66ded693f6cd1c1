"""Which label stands for which class in a run: the order of its checkpoints, or of the weights that it starts from."""
import logging
import os

import numpy as np
from ml_collections import ConfigDict

from htd_jax import checkpoints, paths
from htd_jax.data import Dataset, classes
from htd_jax.errors import UserError

log = logging.getLogger(__name__)


def arrange(dataset: Dataset, config: ConfigDict, workdir: str | os.PathLike) -> Dataset:
    """The training set with its classes in the order that the run has: by name, never by number alone.

    Raises UserError where the run, or `init_from`, has other classes; names the first that differs.
    """
    if trained := _stored(workdir):
        return _in_order(dataset, trained, f"the run in {workdir}",
                         "; train them in another workdir, with this one as config.init_from")
    trained = _stored(config.init_from)
    if trained is None or starts_anew(dataset, config):
        return dataset
    if len(trained) != len(dataset.categories) and config.model.num_classes is None:
        return dataset  # the weights do not fit, and the error says what to do
    return _in_order(dataset, trained, f"config.init_from {config.init_from}",
                     "; set --config.new_classifier=True to train a new classifier")


def starts_anew(dataset: Dataset, config: ConfigDict) -> bool:
    """Whether `init_from` knows other classes by name, so that its classifiers must be left out (`new_classifier`)."""
    trained = _stored(config.init_from)
    return bool(trained and config.new_classifier and _names(trained) != _names(dataset.categories))


def _stored(path):
    """The (id, name) of each label of a workdir or step; None where there is none, or it has no names."""
    return checkpoints.stored_categories(path) if path and paths.of(path).is_dir() else None


def _names(categories):
    return {name for _, name in categories}


def _in_order(dataset, trained, what, remedy):
    labels = classes.label_map(dataset.categories, trained, "the annotations", what)
    if (labels < 0).any():
        unknown = [name for (_, name), label in zip(dataset.categories, labels) if label < 0]
        raise UserError(f"the annotations have classes that {what} has not: {classes.listed(unknown)}{remedy}")
    if len(labels) == len(trained) and (labels == np.arange(len(labels))).all():
        return dataset
    log.info("classes are taken in the order of %s: %s", what, classes.listed([name for _, name in trained]))
    own = {name: id_ for id_, name in dataset.categories}
    return classes.Relabelled(dataset, [(own.get(name, id_), name) for id_, name in trained], labels)
