"""The losses and APs that a training run has logged, thinned out for a chart."""
import contextlib
import json
import os

from htd_jax import paths

POINTS = 400  # of a line
SCORES = ("AP", "AP50", "AP75")


def read(run: str | os.PathLike | None) -> dict | None:
    """{"losses" and "scores": {name: [[step, value], ...]}} of a workdir; None where there is no such log."""
    if run is None or not (paths.of(run) / "metrics.jsonl").is_file():
        return None
    steps, evaluations = (rows(paths.of(run) / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    losses = sorted({name for row in steps for name in row if "loss" in name})
    return dict(losses=_lines(steps, losses), scores=_lines(evaluations, SCORES))


def rows(path: paths.Path) -> list[dict]:
    """The rows of a file of JSON lines, none where there is no file; a line that is being written, or that the end of
    its process cut off, is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _lines(logged, names):
    kept = logged[:: max(1, -(-len(logged) // POINTS))]
    lines = {name: [[row["step"], round(row[name], 5)] for row in kept if row.get(name) is not None] for name in names}
    return {name: line for name, line in lines.items() if line}
