"""Checkpoints by Orbax: written in the background, checked when read, the last few and the best by AP kept.

A workdir holds `config.json`, `categories.json` and `checkpoints/STEP/`. What is saved are nested dicts of arrays, always
restored into a tree of shapes with shardings, so that any number of devices reads what any other has written.
"""
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from htd_jax import config as config_lib
from htd_jax.errors import UserError

log = logging.getLogger(__name__)
# Orbax logs every error that it then raises, with a page of traceback, and remarks on every save.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
_SHOWN = 6  # tensors that an error lists
_RENAMED = {"border": "ba"}  # modules, as runs of earlier versions saved them; `conv1` and `bn1` were not in a `stem`


class Checkpoints:
    """The checkpoints of one workdir. A context manager; leaving it waits for what is still being written."""

    def __init__(self, workdir, keep=3):
        """Args: workdir: pathlib.Path, exists. keep: how many of the last checkpoints stay, beside the best by AP."""
        self._workdir = pathlib.Path(workdir).resolve()
        self._folder = self._workdir / "checkpoints"
        best = policies.BestN(get_metric_fn=_average_precision, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_average_precision, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=("state",),
                                              item_handlers={"state": ocp.StandardCheckpointHandler()})

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.wait()
        except UserError:
            if kind is None:  # the first error is the one to tell
                raise
        finally:
            self._manager.close()

    def save(self, step, state, average_precision=None):
        """Begins to write `state`; returns once it is copied, so that the step may consume it. Nothing if it is there.

        Raises UserError where the disk is full or cannot be written to: also for the checkpoint before, if that was
        still being written.
        """
        if step in self._manager.all_steps():
            return
        metrics = None if average_precision is None else {"AP": float(average_precision)}
        tree = dict(state, checksums=_checksums(state))
        self._guarded(self._manager.save, step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree)), metrics=metrics)

    def check(self):
        """Raises as `save` does if what is being written in the background has failed; costs nothing."""
        self._guarded(self._manager.check_for_errors)

    def wait(self):
        """Waits until everything is on disk; raises as `save` does."""
        self._guarded(self._manager.wait_until_finished)

    def restore(self, abstract):
        """Returns (step, state) of the newest checkpoint that can be read, or None where there is none.

        Args:
            abstract: the state as jax.ShapeDtypeStructs with shardings.
        A damaged checkpoint is named, moved aside to `damaged-STEP`, and the one before is used. Raises UserError where
        a checkpoint is of another model, or all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state = self._read(step, abstract)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds
                self._set_aside(step, steps, error)
            else:
                return step, state
        return None

    def _read(self, step, abstract):
        folder = self._folder / str(step) / "state"
        stored = _stored(folder)
        earlier = _is_earlier(stored)
        wanted = _map_weights(_earlier_names, abstract) if earlier else abstract
        check_same_tensors(stored, wanted, folder.parent)
        sums = {key: jax.ShapeDtypeStruct((), jnp.uint32, sharding=_sharding(abstract)) for key in abstract}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(dict(wanted, checksums=sums)))
        tree = dict(self._manager.restore(step, args=args).state)
        sums = tree.pop("checksums")
        _verify(tree, sums)
        return _map_weights(_current_names, tree) if earlier else tree

    def _set_aside(self, step, steps, error):
        reason = " ".join(str(error).split())[:200]
        if step == steps[-1]:
            raise UserError(f"no checkpoint in {self._folder} can be read ({len(steps)} tried); step {step}: {reason} "
                            "Remove the folder to start from the beginning") from error
        aside = _unused(self._workdir / f"damaged-{step}")
        log.warning("checkpoint %s is damaged and was moved to %s; the one before is used. %s",
                    self._folder / str(step), aside, reason)
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._manager.reload()

    def _guarded(self, write, *args, **kwargs):
        try:
            write(*args, **kwargs)
        except Exception as error:  # Orbax and TensorStore raise many kinds
            reason = "the disk is full" if "No space left" in str(error) else " ".join(str(error).split())[:300]
            kept = max(self._manager.all_steps(), default=None)
            then = f"; started again, training goes on from step {kept}" if kept is not None else ""
            raise UserError(f"cannot write a checkpoint to {self._folder}: {reason}{then}") from error


def restore_params(path):
    """Reads the weights of a training run, the averaged ones (EMA) where the run has them.

    Args:
        path: a workdir (its latest checkpoint is read) or one saved step, WORKDIR/checkpoints/STEP.
    Returns:
        Nested dict of numpy arrays by NNX path: all parameters, trained or frozen, and statistics.
    Raises UserError where there is no checkpoint or it is damaged.
    """
    folder = _step_folder(path)
    try:
        stored = ocp.StandardCheckpointer().metadata(folder / "state").item_metadata.tree
        trained = "ema" if "ema" in stored else "params"
        wanted = {key: stored[key] for key in (trained, "frozen")}
        tree = _read_numpy(folder / "state", wanted | {"checksums": stored["checksums"]})
        sums = tree.pop("checksums")
        _verify(tree, sums)
    except Exception as error:
        raise UserError(f"checkpoint {folder} is damaged: {' '.join(str(error).split())[:200]}") from error
    weights = _merged(_numbered(tree[trained]), _numbered(tree["frozen"]))
    return _current_names(weights) if _is_earlier(stored) else weights


def load_config(path):
    """Returns the configuration of the run that a workdir or one saved step belongs to; UserError where it has none."""
    return config_lib.from_json(_beside(path, "config.json"))


def load_categories(path):
    """Returns [(id, name), ...] in the order of the labels, of the run that a workdir or one saved step belongs to."""
    return [tuple(pair) for pair in json.loads(_beside(path, "categories.json"))]


def write_about(workdir, config, categories):
    """Writes config.json and categories.json: what `load_config` and `load_categories` read."""
    (workdir / "config.json").write_text(config_lib.to_json(config))
    (workdir / "categories.json").write_text(json.dumps([[c.id, c.name] for c in categories]) + "\n")


def check_same_tensors(stored, wanted, source):
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


def _average_precision(metrics):
    return metrics["AP"]


def _stored(folder):
    tree = ocp.StandardCheckpointer().metadata(folder).item_metadata
    if tree is None:
        raise ValueError("its list of tensors is missing")
    return tree.tree


def _shapes(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _is_earlier(stored):
    """Whether a tree was saved before some of the modules had today's names."""
    return any(name in stored["params"] for name in _RENAMED)


def _map_weights(rename, state):
    """`state` with `rename` done to each dict of weights by module in it, those of the optimiser included."""
    is_weights = lambda x: isinstance(x, dict) and "neck" in x
    return jax.tree.map(lambda x: rename(x) if is_weights(x) else x, state, is_leaf=is_weights)


def _earlier_names(weights):
    earlier = {current: old for old, current in _RENAMED.items()}
    weights = {earlier.get(key, key): value for key, value in weights.items()}
    backbone = dict(weights["backbone"])
    return weights | {"backbone": backbone.pop("stem", {}) | backbone}


def _current_names(weights):
    weights = {_RENAMED.get(key, key): value for key, value in weights.items()}
    backbone = dict(weights["backbone"])
    stem = {key: backbone.pop(key) for key in ("conv1", "bn1") if key in backbone}
    return weights | {"backbone": backbone | ({"stem": stem} if stem else {})}


def _sharding(abstract):
    return jax.tree.leaves(abstract)[0].sharding


@jax.jit
def _checksums(tree):
    """uint32 of each entry of a dict: the sum of all bits, taken as integers, so that no order of summing matters."""
    def bits(x):
        x = jnp.asarray(x)
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        return jnp.sum(jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32), dtype=jnp.uint32)
    return {key: sum(map(bits, jax.tree.leaves(part)), jnp.uint32(0)) for key, part in tree.items()}


def _verify(tree, sums):
    for key, value in _checksums(tree).items():
        if int(value) != int(sums[key]):
            raise ValueError(f"the bits of `{key}` are not those that were saved")


def _read_numpy(folder, tree):
    restore = jax.tree.map(lambda m: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return ocp.PyTreeCheckpointer().restore(folder, args=ocp.args.PyTreeRestore(tree, restore, partial_restore=True))


def _step_folder(path):
    """The folder of one saved step: `path` itself, or the latest of a workdir or its checkpoints/."""
    path = pathlib.Path(path).resolve()
    for folder in (path, path / "checkpoints"):
        if (folder / "state").is_dir():
            return folder
        steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
        if steps:
            return folder / str(max(steps))
    raise UserError(f"{path} has no checkpoint: neither checkpoints/STEP nor one saved step")


def _beside(path, name):
    step = _step_folder(path)
    for folder in (step, *step.parents[:2]):
        if (folder / name).is_file():
            return (folder / name).read_text()
    raise UserError(f"{name} of the checkpoint {step} is missing; it belongs into {step.parents[1]}")


def _numbered(tree):
    """Keys of digits are indices of NNX lists."""
    if not isinstance(tree, dict):
        return tree
    return {int(key) if str(key).isdigit() else key: _numbered(value) for key, value in tree.items()}


def _merged(a, b):
    if not isinstance(a, dict):
        return a
    return {key: _merged(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in a.keys() | b.keys()}


def _unused(path):
    """`path`, or with the first number added that makes it new."""
    new, number = path, 0
    while new.exists():
        number += 1
        new = path.with_name(f"{path.name}.{number}")
    return new
