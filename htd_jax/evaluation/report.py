"""report.html: the numbers, curves, errors and classes of an evaluation, and its images, worst first."""
import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict
from pycocotools.cocoeval import COCOeval

from htd_jax.data import Category, Dataset
from htd_jax.evaluation import coco, curves, drawing, errors, image_rows, matches, pages, run_logs

POINTS = 101  # of a curve


def write(path: str | os.PathLike, metrics: dict, evaluation: COCOeval, dataset: Dataset, config: ConfigDict,
          command: str = "", run: str | os.PathLike | None = None) -> None:
    """Writes the page.

    Args:
      metrics, evaluation: of `coco.metrics` and `coco.evaluation`, for the ground truth of `dataset`.
      config, command: shown as they are.
      run: the workdir of the training, whose losses and APs are shown; None, or without logs, for none.
    """
    found = matches.read(evaluation)
    threshold = metrics["best_f1_score_threshold"]
    start = threshold if threshold >= 0 else drawing.THRESHOLD
    rows = image_rows.of(found, dataset, start)
    data = dict(
        numbers=[(name, metrics[name]) for name in coco.METRICS], training=run_logs.read(run), detects=True,
        threshold=start, kinds=matches.KINDS, rows=rows, **analysis(evaluation, found, dataset.categories, start))
    pages.write(path, "report.html", ("elements.js", "report.js", "gallery.js"), data,
                title=f"AP {_number(metrics['AP'])} on {len(dataset)} images",
                summary=f"{len(dataset)} images, {(~found.crowd).sum()} objects, {len(found.score)} detections.",
                threshold=_advice(metrics), pictures=_pictures(rows, len(dataset)), command=command,
                config=json.dumps(config.to_dict(), indent=1, default=str))


def analysis(evaluation: COCOeval, found: matches.Matches, categories: Sequence[Category], threshold: float) -> dict:
    """What the charts and tables show, as JSON; classes in the COCO API's order, by ascending id."""
    ordered = sorted(categories, key=lambda category: category.id)
    names, count = coco.class_names([category._asdict() for category in ordered]), len(ordered)
    bins, error = curves.calibration(found)
    return dict(
        names=names, classes=[_class(evaluation, found, label, name) for label, name in enumerate(names)],
        overall=_overall(evaluation, found), costs=[dataclasses.asdict(c) for c in errors.costs(found, count)],
        confusion=errors.confusion(found, count, threshold).tolist(),
        calibration=dict(bins=[dataclasses.asdict(b) for b in bins], error=error))


def _class(evaluation, found, label, name):
    own = curves.of_class(found, label)
    ap, small, medium, large = (coco.average_precision(evaluation, label, area) for area in coco.AREAS)
    return dict(name=name, ap=ap, small=small, medium=medium, large=large, ap50=curves.average_precision(own),
                objects=own.positives, detections=len(own.score),
                precision=_rounded(curves.precision_at_recalls(own)), **_f1(own))


def _overall(evaluation, found):
    """Precision is the mean over the classes that have objects, as AP50 is; F1 is of all detections together."""
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # recall, class
    present = precision[:, (precision > -1).all(0)]
    mean = present.mean(1) if present.size else np.zeros(POINTS)
    return dict(name="all classes", precision=_rounded(mean), **_f1(curves.of_class(found)))


def _f1(curve):
    threshold, best = curves.best_threshold(curve)
    return dict(threshold=threshold, best_f1=best, f1=_rounded(curves.f1_at(curve, np.linspace(0, 1, POINTS))))


def _rounded(values):
    return [round(value, 4) for value in values.tolist()]


def _number(value):
    return "–" if value < 0 else f"{value:.3f}"


def _advice(metrics):
    threshold = metrics["best_f1_score_threshold"]
    if threshold < 0:
        return "No detection is right, or there is no ground truth: no score is better than another."
    return (f"A score of {threshold:.3f} gives the greatest F1 over all classes, {metrics['best_f1']:.3f}: predict.py "
            f"--score {threshold:.3f}. Each class has its own best score in the table below.")


def _pictures(rows, count):
    """What of the images the page shows, and what it leaves out."""
    pictured = sum("picture" in row for row in rows)
    if pictured == count:
        return f"All {count} images, worst first."
    left = f", and {count - len(rows)} best ones are not listed" if len(rows) < count else ""
    return (f"To keep this page small, the {pictured} images with the most errors have a picture, "
            f"{len(rows) - pictured} are listed by their numbers only{left}.")
