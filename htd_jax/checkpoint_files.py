"""A saved step as it lies on disk, WORKDIR/checkpoints/STEP: what travels with it, its score, what counts as damage.

  state/           arrays, by Orbax
  about/metadata   JSON: `config`, `categories` and `epochs` (seen so far), so that a step can be copied away alone
  metrics/metrics  JSON: `AP`, once it has been evaluated
  commit_success.txt   in a bucket, once all else is there; on a disk a folder is renamed then
"""
import contextlib
import json
import os
import re
from typing import Any

import msgspec

from htd_jax import paths
from htd_jax.errors import UserError, one_line

_ORIGINAL = "put back the original, or one from a run of the same settings and classes"
# How TensorStore's errors begin where a file is missing, cut or cannot be parsed; no permission is none of these.
_DAMAGE = "NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT"
_MARK = "commit_success.txt"


class Missing(UserError):
    """There is no checkpoint, or no such file of its run."""


class Damaged(ValueError):
    """The files of a checkpoint are not those that were saved."""


def score(step: paths.Path) -> float | None:
    """The AP of a saved step, or None; UserError where its file is damaged."""
    path = step / "metrics" / "metrics"
    remedy = "remove it: the step then counts as not evaluated"
    return _decode(path, dict[str, float], remedy).get("AP") if path.is_file() else None


def write_score(step: paths.Path, ap: float) -> None:
    """Puts the AP beside a step that is on disk, at once whole."""
    folder = step / "metrics"
    folder.mkdir(exist_ok=True)
    paths.write(folder / "metrics", json.dumps({"AP": float(ap)}), whole=True)


def about(step: paths.Path) -> dict:
    """What travels with a saved step; empty for one of an earlier version."""
    path = step / "about" / "metadata"
    return _decode(path, dict) if path.is_file() else {}


def step_folder(path: str | os.PathLike) -> paths.Path:
    """The folder of one saved step: `path` itself, or the latest of a workdir or its checkpoints/; else Missing."""
    path = paths.absolute(path, links=False)
    for folder in (path, path / "checkpoints"):
        if (folder / "state").is_dir():
            return folder
        for step in sorted(_steps(folder), key=lambda step: -int(step.name)):
            if _is_whole(step):
                return step
    if not path.exists():
        raise Missing(f"{path}: no such file or folder")
    raise Missing(f"{path} has no checkpoint: neither checkpoints/STEP nor one saved step")


def settle(folder: paths.Path) -> None:
    """Prepares a bucket's steps for Orbax: marks those copied from a disk as finished, removes the unfinished ones.

    Orbax itself removes unfinished steps in the background. Meanwhile a step of the same number may be saved; it would
    be removed too.
    """
    for step in _steps(folder) if paths.in_bucket(folder) else ():
        if not _is_whole(step):
            step.rmtree()
        elif not (step / _MARK).exists():
            paths.write(step / _MARK, "")


def find(path: str | os.PathLike, name: str, schema: Any) -> Any:
    """The content of NAME.json of a workdir or one saved step: the step's own, else that of the file beside it.

    `schema`: the type that it must have. Raises Missing where there is neither, UserError where it is of another type.
    """
    step = step_folder(path)
    if name in (own := about(step)):
        with _as_written(step / "about" / "metadata", _ORIGINAL):
            return msgspec.convert(own[name], schema)
    for folder in (step, *step.parents[:2]):
        if (folder / f"{name}.json").is_file():
            return _decode(folder / f"{name}.json", schema)
    instead = ", or give --config" if name == "config" else ""
    raise Missing(f"{name}.json of the checkpoint {step} is missing; it belongs into {step.parents[1]}{instead}")


def _decode(path, schema, remedy=_ORIGINAL):
    with _as_written(path, remedy):
        return msgspec.json.decode(path.read_bytes(), type=schema)


@contextlib.contextmanager
def _as_written(path, remedy):
    try:
        yield
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UserError(f"{path} is not what a run writes there: {one_line(error)}; {remedy}") from error


def damage(step: paths.Path, error: Exception) -> str:
    """What is wrong with the files of a step that could not be read, in one line.

    Raises UserError, with its own reason, where the files may well be whole: no permission, no memory, no device, a
    folder that is not there any more.
    """
    try:
        _read_all(step)
    except OSError as unreadable:
        error = unreadable
    else:
        of_files = Damaged, FileNotFoundError, json.JSONDecodeError
        reasons = [e for e in (error, error.__cause__) if isinstance(e, of_files) or str(e).startswith(_DAMAGE)]
        if reasons:
            return one_line(reasons[-1])
    raise UserError(f"checkpoint {step} cannot be read, though it may be whole, and nothing was changed: "
                    f"{type(error).__name__} {one_line(error)}") from error


def _steps(folder):
    return [path for path in folder.iterdir() if re.fullmatch("[0-9]+", path.name)] if folder.is_dir() else []


def _is_whole(step):
    """Whether Orbax has ended writing a step; in a copy from a disk its own file alone says so."""
    if not paths.in_bucket(step) or (step / _MARK).exists():
        return True
    own = step / "_CHECKPOINT_METADATA"
    return own.is_file() and bool(_decode(own, dict).get("commit_timestamp_nsecs"))


def _read_all(folder):
    """Opens every file of a folder; raises OSError where it cannot."""
    for path in folder.iterdir():
        if path.is_dir():
            _read_all(path)
        else:
            with path.open("rb") as file:
                file.read(1)
