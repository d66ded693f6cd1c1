"""A saved step as it lies on disk, WORKDIR/checkpoints/STEP: what travels with it, its score, what counts as damage.

  state/           arrays, by Orbax
  about/metadata   JSON: `config`, `categories` and `epochs` (seen so far), so that a step can be copied away alone
  metrics/metrics  JSON: `AP`, once it has been evaluated
"""
import contextlib
import json
import os
import pathlib
import re
from typing import Any

import msgspec

from htd_jax.errors import UserError, one_line

_ORIGINAL = "put back the original, or one from a run of the same settings and classes"
# How TensorStore's errors begin where a file is missing, cut or cannot be parsed; no permission is none of these.
_DAMAGE = "NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT"


class Missing(UserError):
    """There is no checkpoint, or no such file of its run."""


class Damaged(ValueError):
    """The files of a checkpoint are not those that were saved."""


def score(step: pathlib.Path) -> float | None:
    """The AP of a saved step, or None; UserError where its file is damaged."""
    path = step / "metrics" / "metrics"
    remedy = "remove it: the step then counts as not evaluated"
    return _decode(path, dict[str, float], remedy).get("AP") if path.is_file() else None


def write_score(step: pathlib.Path, ap: float) -> None:
    """Puts the AP beside a step that is on disk, at once whole."""
    folder = step / "metrics"
    folder.mkdir(exist_ok=True)
    new = folder / "metrics.new"
    new.write_text(json.dumps({"AP": float(ap)}), encoding="utf-8")
    new.replace(folder / "metrics")


def about(step: pathlib.Path) -> dict:
    """What travels with a saved step; empty for one of an earlier version."""
    path = step / "about" / "metadata"
    return _decode(path, dict) if path.is_file() else {}


def step_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder of one saved step: `path` itself, or the latest of a workdir or its checkpoints/; else Missing."""
    path = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
    for folder in (path, path / "checkpoints"):
        if (folder / "state").is_dir():
            return folder
        steps = [p for p in folder.iterdir() if re.fullmatch("[0-9]+", p.name)] if folder.is_dir() else []
        if steps:
            return max(steps, key=lambda step: int(step.name))
    raise Missing(f"{path} has no checkpoint: neither checkpoints/STEP nor one saved step")


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


def damage(step: pathlib.Path, error: Exception) -> str:
    """What is wrong with the files of a step that could not be read, in one line.

    Raises UserError, with its own reason, where the files may well be whole: no permission, no memory, no device, a
    folder that is not there any more.
    """
    try:
        for folder, _, names in os.walk(step, onerror=_raise):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    file.read(1)
    except OSError as unreadable:
        error = unreadable
    else:
        of_files = Damaged, FileNotFoundError, json.JSONDecodeError
        reasons = [e for e in (error, error.__cause__) if isinstance(e, of_files) or str(e).startswith(_DAMAGE)]
        if reasons:
            return one_line(reasons[-1])
    raise UserError(f"checkpoint {step} cannot be read, though it may be whole, and nothing was changed: "
                    f"{type(error).__name__} {one_line(error)}") from error


def _raise(error):
    raise error
