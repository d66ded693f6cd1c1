"""The losses and APs that a training run has logged, thinned out for a chart."""
import json
import os
import pathlib

POINTS = 400  # of a line
SCORES = ("AP", "AP50", "AP75")


def read(run: str | os.PathLike | None) -> dict | None:
    """{"losses" and "scores": {name: [[step, value], ...]}} of a workdir; None where there is no such log."""
    if run is None or not (pathlib.Path(run) / "metrics.jsonl").is_file():
        return None
    steps, evaluations = (_rows(pathlib.Path(run) / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
    losses = sorted({name for row in steps for name in row if "loss" in name})
    return dict(losses=_lines(steps, losses), scores=_lines(evaluations, SCORES))


def _rows(path):
    """Those of a file of JSON lines; a run that goes on may be in the middle of writing the last."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _lines(rows, names):
    kept = rows[:: max(1, -(-len(rows) // POINTS))]
    lines = {name: [[row["step"], round(row[name], 5)] for row in kept if row.get(name) is not None] for name in names}
    return {name: line for name, line in lines.items() if line}
