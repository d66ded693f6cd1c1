"""Weights into a model, from anything that holds them.

Every source, our own checkpoints included, is first brought to the original's names and layouts; then one check says
which tensors are missing, extra or of another shape. Nothing is skipped in silence.
"""
import logging
import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from htd_jax import paths
from htd_jax.errors import UserError, one_line
from htd_jax.weights import files, hub, names, publishers

# The layers whose size is the number of classes; replaced together, as PGraph uses stage 0's classifier.
CLASSIFIERS = ("sfa.fc", "stage0.fc_cls", "pgraph.fc_cls")

_BACKBONE = "backbone."
_IMAGENET = ("fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias")  # classifiers of torchvision/timm and MMPretrain
_SHOWN = 10

Tensors = dict[str, np.ndarray]  # name in a checkpoint: array in PyTorch's layout

log = logging.getLogger(__name__)


def load_tensors(source: str | os.PathLike) -> Tensors:
    """Reads weights: a `.safetensors`, `.pth`, `.pkl` or `.h5` file; a training workdir (its latest step) or one saved
    step; or `hf:OWNER/NAME` on the Hugging Face hub.

    Every tensor comes once, without batch counters; a backbone alone has the prefix `backbone.` too.
    """
    if str(source).startswith(hub.PREFIX):
        return canonical(files.read(hub.download(source)), source)
    if paths.of(source).is_dir():
        from htd_jax import checkpoints  # Orbax: seconds to import, and a file of tensors needs none of it
        return export(checkpoints.restore_params(source))
    return canonical(files.read(source), source)


def canonical(tensors: Tensors, source: str | os.PathLike = "the file") -> Tensors:
    """The tensors with one name each, the original's; what differs between publishers is undone here.

    Names of Detectron, Detectron2 and Keras become torchvision's (`publishers`). A prefix `module.` goes, the prefix
    `backbone.` is added to a bare backbone, ImageNet classifiers beside a backbone and batch counters are dropped, and
    of a tensor with two names one is kept.
    Raises UserError where two names of one tensor hold different values, or a publisher's ResNet lacks its stem.
    """
    tensors = {name: array for name, array in tensors.items() if not names.is_counter(name)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    try:
        tensors = publishers.to_torchvision(tensors)
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: its tensors are not those of a whole ResNet: {type(error).__name__} "
                        f"{one_line(error)}; give the file as it was published") from error
    if not any(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in tensors):
        tensors = _backbone(tensors)
    single = {}
    for name, array in tensors.items():
        first = names.first_name(name)
        if first in single and not np.array_equal(single[first], array):
            raise UserError(f"{source}: {' and '.join(names.all_names(first))} are one tensor, but differ")
        single[first] = array
    return single


def load_into(tree: dict, tensors: Tensors, *, source: str | os.PathLike = "the file",
              backbone_only: bool | str = "auto", new_classifier: bool = False) -> dict:
    """Puts tensors into a tree of parameters, or lists everything that keeps them from fitting.

    Args:
        tree: nested dict of the model's arrays, or of anything with `shape` (ShapeDtypeStruct).
        source: what an error calls the tensors.
        backbone_only: True: only the backbone is wanted; False: everything is; 'auto': a source that has nothing else
            is taken for a backbone. Deformable offsets, which no backbone comes with, may then be missing.
        new_classifier: leave `CLASSIFIERS` as they are where the source's have another number of classes, or it has
            none.
    Returns:
        A new tree: numpy arrays in the model's layout, and what was left out as it was in `tree`.
    Raises UserError: the first ten tensors that are missing, extra, of another shape or not of floating point, and
    how many there are.
    """
    leaves = _named(tree)
    wanted = {name: path for name, (_, path, _) in leaves.items()}
    if backbone_only == "auto":
        backbone_only = all(name.startswith(_BACKBONE) for name in tensors)
    shapes = {name: names.checkpoint_shape(leaf.shape) for name, (_, _, leaf) in leaves.items()}
    other = [name for name in tensors if name in wanted and tensors[name].shape != shapes[name]]
    fresh = _other_classes(other, tensors, shapes, wanted) if new_classifier else []
    optional = lambda name: backbone_only and (not name.startswith(_BACKBONE) or ".conv_offset." in name)
    left = [name for name in wanted if name in fresh or (name not in tensors and optional(name))]
    _check(source, tensors, shapes, left, [name for name in other if name not in fresh], wanted)
    log.info("%s: %d of %d tensors read", source, len(wanted) - len(left), len(wanted))
    if left:
        log.warning("%s: %d stay at their initial values: %s", source, len(left), listed(left))
    return traverse_util.unflatten_dict({
        key: leaf if name in left else names.from_checkpoint(path, tensors[name])
        for name, (key, path, leaf) in leaves.items()})


def without_classifiers(tree: dict, tensors: Tensors) -> Tensors:
    """The tensors but for those of `CLASSIFIERS`; `tree` as in `load_into`."""
    classifiers = {name for name, (_, path, _) in _named(tree).items() if path.startswith(CLASSIFIERS)}
    return {name: array for name, array in tensors.items() if name not in classifiers}


def export(tree: dict) -> Tensors:
    """The tensors of a tree of parameters, every one once."""
    return {name: names.to_checkpoint(path, np.asarray(leaf)) for name, (_, path, leaf) in _named(tree).items()}


def complete(tensors: Tensors) -> Tensors:
    """The tensors under *all* the original's names: BA's attention twice, and the batch counters as zeros."""
    full = {name: array for first, array in tensors.items() for name in names.all_names(first)}
    counters = {names.counter_name(name) for name in tensors} - {None}
    return full | {name: np.zeros((), np.int64) for name in counters}


def num_classes(tensors: Tensors) -> int | None:
    """The number of classes, without background, of a detector's tensors; None of a backbone's."""
    bias = tensors.get("roi_head.bbox_head.0.fc_cls.bias")
    return len(bias) - 1 if np.size(bias) > 1 else None


def listed(rows: Sequence[str]) -> str:
    """The first ten of some names, and dots where there are more."""
    return ", ".join(rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")


def tree_of(model: nnx.Module) -> dict:
    """The parameters and statistics of an NNX module as a nested dict, without random states."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))


def put(model: nnx.Module, tree: dict) -> None:
    """Replaces the parameters and statistics of an NNX module, in place, by a nested dict of the same paths.

    Arrays take the dtype and sharding of those they replace; those of an abstract model, the default device.
    """
    state = nnx.state(model, nnx.Not(nnx.RngState))
    old = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    new = traverse_util.flatten_dict(tree)
    placed = {path: jnp.asarray(new[path], leaf.dtype, device=leaf.sharding) for path, leaf in old.items()}
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(placed))
    nnx.update(model, state)


def _named(tree):
    """{name in a checkpoint: (key of the flat tree, the same with dots, leaf)} of a tree of parameters."""
    rows = [(key, ".".join(map(str, key)), leaf) for key, leaf in traverse_util.flatten_dict(tree).items()]
    named = {names.checkpoint_name(row[1]): row for row in rows}
    if None in named:  # our bug, not the user's
        raise KeyError(f"{named[None][1]} has no row in htd_jax.weights.names.MODULES")
    return named


def _backbone(tensors):
    """The tensors of a file without a detector: bare names get the prefix, the ImageNet classifier goes."""
    kept = {name: array for name, array in tensors.items() if name not in _IMAGENET}
    if "conv1.weight" in kept:
        kept = {_BACKBONE + name: array for name, array in kept.items()}
    return kept


def _other_classes(other, tensors, shapes, wanted):
    """All classifier tensors, where every one that differs is missing or of another number of classes; else none."""
    classifier = [name for name, path in wanted.items() if path.startswith(CLASSIFIERS)]
    differs = [name for name in classifier if name in other or name not in tensors]
    alike = all(tensors[name].shape[1:] == shapes[name][1:] for name in differs if name in tensors)
    return classifier if differs and alike else []


def _check(source, tensors, shapes, left, other, wanted):
    missing = [name for name in wanted if name not in tensors and name not in left]
    extra = [name for name in tensors if name not in wanted]
    by = lambda shape: "x".join(map(str, shape))
    reshaped = [f"{name} {by(tensors[name].shape)} for {by(shapes[name])}" for name in other]
    integers = [f"{name} {tensors[name].dtype}" for name in wanted
                if name in tensors and tensors[name].dtype.kind != "f"]
    found = [f"{len(rows)} {what}: {listed(rows)}" for what, rows in (
        ("missing", missing), ("extra", extra), ("of another shape", reshaped), ("not of floats", integers)) if rows]
    if found:
        raise UserError(f"{source} does not fit the model: {'; '.join(found)}{_hint(other, wanted, tensors)}")


def _hint(other, wanted, tensors):
    classes = {tensors[name].shape[0] - 1 for name in other if wanted[name].startswith(CLASSIFIERS)}
    if len(classes) != 1:
        return ""
    return (f". Its classifier has {classes.pop()} classes: set --config.model.num_classes to that, or "
            "--config.new_classifier=True to train a new one")
