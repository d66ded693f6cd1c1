"""Checkpoints by Orbax: written in the background, checked when read, the last few and the best by AP kept.

A workdir holds `config.json`, `categories.json` and `checkpoints/STEP/`: nested dicts of arrays, always restored into a
tree of shapes with shardings, so that any number of devices reads what any other has written.
"""
import itertools
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from htd_jax import checkpoint_files as files, config as config_lib, paths
from htd_jax.errors import UserError, one_line, reason_of

log = logging.getLogger(__name__)
# Orbax logs every error that it then raises, with a page of traceback, and remarks on every save.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
_report = sys.unraisablehook
_SHOWN = 6  # tensors that an error lists
# Modules, by their paths in runs of earlier versions and now.
_RENAMED = {("border",): ("ba",), ("backbone", "conv1"): ("backbone", "stem", "conv1"),
            ("backbone", "bn1"): ("backbone", "stem", "bn1")}


def _quiet(unraisable):
    """TensorStore reports to an event loop that Orbax has closed, having raised what went wrong: that is no news."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _report(unraisable)


sys.unraisablehook = _quiet


class _BestByAP(policies.PreservationPolicy):
    """Keeps the checkpoint with the best score, the latest among equals."""

    def __init__(self, folder):
        self._folder = folder

    def should_preserve(self, checkpoints: Sequence, *, context: Any = None) -> Sequence[bool]:
        scores = [files.score(self._folder / str(checkpoint.step)) for checkpoint in checkpoints]
        best = max(((ap, i) for i, ap in enumerate(scores) if ap is not None), default=(None, None))[1]
        return [i == best for i in range(len(scores))]


class Checkpoints:
    """The checkpoints of one workdir. A context manager; leaving it waits for what is still being written."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 3):
        """keep: how many of the last checkpoints stay, beside the best by AP."""
        self._workdir = paths.absolute(workdir, links=False)
        self._folder = self._workdir / "checkpoints"
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), _BestByAP(self._folder)])
        for step in self._folder.glob("[0-9]*"):
            files.score(step)  # before Orbax reads them: it does not say which one is damaged
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept, cleanup_tmp_directories=not paths.in_bucket(self._folder))
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        try:
            with paths.os_errors():
                _once(f"settled {self._folder}", files.settle, self._folder)
                self._manager = ocp.CheckpointManager(
                    self._folder, options=options, item_names=tuple(handlers), item_handlers=handlers)
        except OSError as error:
            raise UserError(f"the checkpoints in {self._folder} cannot be used: {reason_of(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type, error, traceback):
        try:
            self.wait()
        except UserError:
            if error is None:  # the first error is the one to report
                raise
        finally:
            self._manager.close()

    def save(self, step: int, state: dict, about: dict | None = None) -> None:
        """Begins to write `state`; returns once it is copied, so that the step may consume it. Skips an existing step.

        `about` is JSON that travels with it (`checkpoint_files`).
        Raises UserError where the disk is full or cannot be written to: also for the checkpoint before, if that was
        still being written.
        """
        if step in self._manager.all_steps():
            return
        tree = dict(state, checksums=_checksums(state))
        items = dict(state=ocp.args.StandardSave(tree)) | (dict(about=ocp.args.JsonSave(about)) if about else {})
        self._guarded(self._manager.save, step, args=ocp.args.Composite(**items))

    def score(self, step: int, average_precision: float) -> None:
        """Adds the AP of a saved step, once that is on disk: the best one stays."""
        self.wait()
        if jax.process_index() == 0:
            self._guarded(files.write_score, self._folder / str(step), average_precision)

    def about(self, step: int) -> dict:
        """What was saved with a step; empty for one of an earlier version, or where there is none."""
        return files.about(self._folder / str(step))

    def check(self) -> None:
        """Raises as `save` does if what is being written in the background has failed; costs nothing."""
        self._guarded(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until everything is on disk; raises as `save` does."""
        self._guarded(self._manager.wait_until_finished)

    def restore(self, abstract: dict) -> tuple[int, dict] | None:
        """Returns (step, state) of the newest checkpoint that can be read, or None where there is none.

        `abstract` is the state as jax.ShapeDtypeStructs with shardings. A damaged checkpoint is named, moved aside to
        `damaged-STEP`, and the one before is used. Raises UserError where a checkpoint is of another model, all are
        damaged, or one has values that are not finite or cannot be read for another reason: then nothing is touched.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state = self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds
                self._set_aside(step, steps, files.damage(self._folder / str(step), error))
            else:
                return step, state
        return None

    def _read(self, step, abstract):
        folder = self._folder / str(step) / "state"
        stored = _stored(folder)
        renamed = _RENAMED if _is_earlier(stored) else {}
        wanted = _rename(abstract, {new: old for old, new in renamed.items()})
        _check_same_tensors(stored, wanted, folder.parent)
        scalar = jax.ShapeDtypeStruct((), jnp.uint32, sharding=jax.tree.leaves(abstract)[0].sharding)
        args = ocp.args.StandardRestore(wanted | {"checksums": dict.fromkeys(abstract, scalar)})
        tree = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
        return _rename(_finite(_verified(tree), folder.parent), renamed)

    def _set_aside(self, step, steps, reason):
        if step == steps[-1]:
            raise UserError(f"no checkpoint in {self._folder} is whole ({len(steps)} tried); step {step}: {reason}. "
                            "Remove the folder to start from the beginning")
        aside = _unused(self._workdir / f"damaged-{step}")
        log.warning("checkpoint %s is damaged and was moved to %s; the one before is used. %s",
                    self._folder / str(step), aside, reason)
        _once(f"damaged checkpoint {step}", (self._folder / str(step)).rename, aside)
        self._manager.reload()

    def _guarded(self, write, *args, **kwargs):
        try:
            write(*args, **kwargs)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = "the disk is full" if "No space left" in str(error) else one_line(error, 300)
            kept = max(self._manager.all_steps(), default=None)
            then = f"; started again, training resumes from step {kept}" if kept is not None else ""
            raise UserError(f"cannot write a checkpoint to {self._folder}: {reason}{then}") from error


def restore_params(path: str | os.PathLike) -> dict:
    """Reads the weights of a training run, the averaged ones (EMA) where the run has them.

    Args:
        path: a workdir (its latest checkpoint is read) or one saved step, WORKDIR/checkpoints/STEP.
    Returns:
        Nested dict of numpy arrays by NNX path: all parameters, trained or frozen, and statistics.
    Raises UserError where there is no checkpoint, it is damaged, or a value in it is not finite.
    """
    folder = files.step_folder(path)
    try:
        stored = _stored(folder / "state")
        wanted = {key: stored[key] for key in ("ema" if "ema" in stored else "params", "frozen", "checksums")}
        as_numpy = jax.tree.map(lambda m: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, as_numpy, partial_restore=True)
        # Not a Checkpointer: that of Orbax 0.12 takes a step that was copied into a bucket for unfinished.
        parts = _verified(ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args))
    except Exception as error:
        raise UserError(f"checkpoint {folder} is damaged: {files.damage(folder, error)}") from error
    _finite(parts, folder)
    # Keys of digits are indices of NNX lists.
    flat = {tuple(int(key) if str(key).isdigit() else key for key in path): array
            for part in parts.values() for path, array in traverse_util.flatten_dict(part).items()}
    return _rename(traverse_util.unflatten_dict(flat), _RENAMED if _is_earlier(stored) else {})


def load_config(path: str | os.PathLike) -> ConfigDict:
    """The configuration of the run that a workdir or one saved step belongs to; UserError where it has none."""
    return config_lib.from_json(json.dumps(files.find(path, "config", dict)))


def load_categories(path: str | os.PathLike) -> list[tuple[int | str, str]]:
    """The (id, name) of each label of the run that a workdir or one saved step belongs to; UserError as above."""
    return [tuple(pair) for pair in files.find(path, "categories", list[tuple[int | str, str]])]


def stored_categories(path: str | os.PathLike) -> list[tuple[int | str, str]] | None:
    """`load_categories`, or None where there is no checkpoint, or one of an earlier version that was copied alone."""
    try:
        return load_categories(path)
    except files.Missing:
        return None


def travelling(config: ConfigDict, categories: Iterable[tuple[int | str, str]]) -> dict:
    """What every saved step takes along, so that it can be copied away alone: `save` wants it."""
    return dict(config=config.to_dict(), categories=[[*category] for category in categories])


def write_about(workdir: paths.Path, config: ConfigDict, categories: Iterable[tuple[int | str, str]]) -> None:
    """Writes config.json and categories.json: what `load_config` and `load_categories` read."""
    paths.write(workdir / "config.json", config_lib.to_json(config))
    paths.write(workdir / "categories.json", json.dumps([[*category] for category in categories]) + "\n")


def _check_same_tensors(stored, wanted, source):
    """Raises UserError that lists the differing tensors unless two trees of arrays (or metadata) have equal shapes."""
    stored, wanted = _shapes(stored), _shapes(wanted)
    stored = {name: shape for name, shape in stored.items() if not name.startswith("checksums.")}
    differing = [f"{name} {stored.get(name, 'missing')} instead of {wanted.get(name, 'none')}"
                 for name in sorted(stored.keys() | wanted.keys(), key=lambda n: (not n.startswith("params."), n))
                 if stored.get(name) != wanted.get(name)]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise UserError(f"checkpoint {source} is of another model: {', '.join(differing[:_SHOWN])}{more}. "
                        "Use its own configuration, or another workdir")


def _stored(folder):
    """The tree of what a checkpoint's files hold: shapes and dtypes."""
    metadata = ocp.StandardCheckpointer().metadata(folder).item_metadata
    if metadata is None:
        raise files.Damaged("its list of tensors is missing")
    return metadata.tree


def _shapes(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _is_earlier(stored):
    """Whether a state was saved before its modules had today's names."""
    return "border" in stored["params"]


def _rename(state, names):
    """`state` with modules renamed, {old path: new path}, in every dict of weights, also in the optimiser's state."""
    def renamed(weights):
        flat = traverse_util.flatten_dict(weights)
        for old, new in names.items():
            flat = {new + path[len(old):] if path[:len(old)] == old else path: leaf for path, leaf in flat.items()}
        return traverse_util.unflatten_dict(flat)

    is_weights = lambda x: isinstance(x, dict) and not {"backbone", "neck"}.isdisjoint(x)
    return jax.tree.map(lambda x: renamed(x) if is_weights(x) else x, state, is_leaf=is_weights) if names else state


@jax.jit
def _checksums(tree):
    """uint32 of each entry of a dict: the sum of all bits, taken as integers, so that no order of summing matters."""
    def bits(x):
        x = jnp.asarray(x)
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)
    return {key: sum(map(bits, jax.tree.leaves(part)), jnp.uint32(0)) for key, part in tree.items()}


def _verified(tree):
    """The tree without its checksums; raises Damaged where they do not agree with its bits."""
    state = {key: part for key, part in tree.items() if key != "checksums"}
    for key, value in _checksums(state).items():
        if int(value) != int(tree["checksums"][key]):
            raise files.Damaged(f"the bits of `{key}` are not those that were saved")
    return state


def _finite(tree, source):
    """The tree; raises UserError that names the first of its arrays with nan or infinity."""
    for path, array in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if bad := np.size(array) - np.isfinite(array).sum():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(f"checkpoint {source}: {bad} of {np.size(array)} values of {name} are nan or infinite: the "
                            "training had diverged; give an earlier step, and to resume from it remove this one")
    return tree


def _once(name, change, *args):
    """Process 0 changes the files; the others wait for it."""
    if jax.process_index() == 0:
        change(*args)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _unused(path):
    """`path`, or with the first number added that makes it new."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(new for new in itertools.chain([path], numbered) if not new.exists())
