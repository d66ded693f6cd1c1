"""Precision, recall and F1 by score, the score that is best to cut at, and how far scores can be believed."""
import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int64

from htd_jax.evaluation.matches import RIGHT, Matches

RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision
NONE = -1.  # where there is no ground truth, as everywhere in COCO's numbers


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is left of D detections, and how much of it is right, when all below a score are cut."""

    score: Float64[np.ndarray, " D"]  # descending
    hits: Int64[np.ndarray, " D"]  # right ones down to each score
    positives: int

    @property
    def precision(self) -> Float64[np.ndarray, " D"]:
        return self.hits / np.arange(1, len(self.hits) + 1)

    @property
    def recall(self) -> Float64[np.ndarray, " D"]:
        return self.hits / max(self.positives, 1)

    @property
    def f1(self) -> Float64[np.ndarray, " D"]:
        return 2 * self.hits / np.maximum(np.arange(1, len(self.hits) + 1) + self.positives, 1)


def curve(score: Float64[np.ndarray, " D"], right: Bool[np.ndarray, " D"], positives: int) -> Curve:
    """The curve of detections in any order; equals keep theirs, as in the COCO API."""
    order = np.argsort(-score, kind="stable")
    return Curve(score[order], np.cumsum(right[order]), positives)


def of_class(matches: Matches, label: int | None = None) -> Curve:
    """The curve of one class, or of all classes together."""
    rows, objects = matches.counted, ~matches.crowd
    if label is not None:
        rows, objects = rows & (matches.label == label), objects & (matches.true_label == label)
    return curve(matches.score[rows], matches.kind[rows] == RIGHT, int(objects.sum()))


def precision_at_recalls(c: Curve) -> Float64[np.ndarray, "101"]:
    """COCO's interpolated precision at `RECALLS`: the best at that recall or above, 0 beyond the last."""
    best = np.maximum.accumulate(c.precision[::-1])[::-1]
    at = np.searchsorted(c.recall, RECALLS, side="left")
    return np.concatenate([best, [0.]])[at]


def average_precision(c: Curve) -> float:
    """COCO's AP at the IoU of the matches; -1 without objects."""
    return float(precision_at_recalls(c).mean()) if c.positives else NONE


def best_threshold(c: Curve) -> tuple[float, float]:
    """The lowest score to keep for the greatest F1, and that F1; -1 and -1 without objects or without any hit."""
    last = np.append(np.diff(c.score) != 0, True)[: len(c.score)]  # a cut keeps all of one score, or none
    f1 = np.where(last, c.f1, 0)
    if not c.positives or not f1.any():
        return NONE, NONE
    return float(c.score[f1.argmax()]), float(f1.max())


def f1_at(c: Curve, thresholds: Float64[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
    """F1 when detections below each threshold are cut; 0 where none is left."""
    kept = np.searchsorted(-c.score, -thresholds, side="right")
    return np.concatenate([[0.], c.f1])[kept]


@dataclasses.dataclass(frozen=True)
class Bin:
    """Detections of one range of scores."""

    low: float
    high: float
    count: int
    score: float  # mean
    precision: float  # share of them that is right


def calibration(matches: Matches, bins: int = 10) -> tuple[list[Bin], float]:
    """Ranges of scores that hold a detection, and the expected calibration error.

    The error is the mean over detections of |mean score - precision| of their range; -1 without detections.
    """
    score, right = matches.score[matches.counted], matches.kind[matches.counted] == RIGHT
    place = np.minimum((score * bins).astype(int), bins - 1)
    result = [Bin(i / bins, (i + 1) / bins, int(own.sum()), float(score[own].mean()), float(right[own].mean()))
              for i in range(bins) if (own := place == i).any()]
    error = sum(b.count * abs(b.score - b.precision) for b in result)
    return result, error / len(score) if len(score) else NONE
