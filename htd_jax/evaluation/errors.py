"""What each kind of error costs in AP50 (TIDE, Bolya et al., ECCV 2020), and which class is taken for which."""
import dataclasses

import numpy as np
from jaxtyping import Bool, Int64
from pycocotools import mask

from htd_jax.evaluation import curves
from htd_jax.evaluation.matches import (
    BACKGROUND_ERROR,
    BOTH,
    CLASS,
    DUPLICATE,
    FOREGROUND,
    KINDS,
    LOCALISATION,
    RIGHT,
    Matches,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """How often one kind of error occurs, and by how much AP50 would rise without it (0 where it would fall)."""

    kind: str
    count: int
    ap50: float


def costs(matches: Matches, classes: int) -> list[Cost]:
    """The cost of each kind of error on its own; they do not add up, since mending one uncovers another.

    Mended means: a localisation or class error becomes a hit if it is the best-scored that would take its object, and
    is else removed; other wrong detections are removed; missed objects are taken out of the ground truth (and a class
    that has no other out of the mean, as COCO does). An object is missed where no detection took it and mending no
    localisation or class error would.
    """
    base, missed = _ap50(matches, classes), _missed(matches)
    rows = []
    for kind in (CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND_ERROR):
        wrong = matches.kind == kind
        rows.append(Cost(KINDS[kind], int(wrong.sum()), _gain(_mended(matches, wrong), classes, base)))
    return [*rows, Cost("missed", int(missed.sum()), _gain(_without(matches, missed), classes, base))]


def confusion(matches: Matches, classes: int, threshold: float) -> Int64[np.ndarray, "_ _"]:
    """Counts by class of the object (row) and of the detection (column); the last of each is the background.

    Of the detections with a score of at least `threshold`, the hits make the diagonal. The others take, best first,
    the remaining objects of their image at IoU >= .5 whatever the class. What is left on either side is background.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    shown = matches.score >= threshold
    hits = shown & (matches.kind == RIGHT)
    np.add.at(counts, (matches.label[hits], matches.label[hits]), 1)
    free = ~matches.crowd
    free[matches.took[hits]] = False
    wrong = np.flatnonzero(shown & matches.counted & ~hits)
    for detection in wrong[np.argsort(-matches.score[wrong], kind="stable")]:
        counts[_take(matches, detection, free, classes), matches.label[detection]] += 1
    np.add.at(counts, (matches.true_label[free], classes), 1)
    return counts


def _take(matches, detection, free, background):
    """The class of the free object that a detection covers best, which is then taken; else the background."""
    a, b = np.searchsorted(matches.true_image, [matches.image[detection], matches.image[detection] + 1])
    objects = np.arange(a, b)[free[a:b]]
    if not len(objects):
        return background
    overlap = mask.iou(matches.box[detection][None], matches.true_box[objects], [False] * len(objects))[0]
    if overlap.max() < FOREGROUND:
        return background
    free[objects[overlap.argmax()]] = False
    return matches.true_label[objects[overlap.argmax()]]


def _missed(matches) -> Bool[np.ndarray, " T"]:
    usable = np.zeros(len(matches.crowd), bool)
    usable[matches.near[matches.near >= 0]] = True
    return ~matches.crowd & ~matches.taken & ~usable


def _mended(matches, wrong):
    """The matches in which the detections `wrong` are hits of the object they are near to, or gone."""
    best = _best_claims(matches) & wrong
    label, kind = matches.label.copy(), matches.kind.copy()
    label[best], kind[best] = matches.true_label[matches.near[best]], RIGHT
    kept = best | ~wrong
    rows = {name: getattr(matches, name)[kept] for name in ("image", "box", "score", "took", "near")}
    return dataclasses.replace(matches, **rows, label=label[kept], kind=kind[kept])


def _best_claims(matches):
    """Which detection is the best-scored of all that are near to the same object, which nothing took."""
    best, seen = np.zeros(len(matches.near), bool), matches.taken.copy()
    claims = np.flatnonzero(matches.near >= 0)
    for detection in claims[np.argsort(-matches.score[claims], kind="stable")]:
        best[detection] = not seen[matches.near[detection]]
        seen[matches.near[detection]] = True
    return best


def _without(matches, objects):
    """The matches in which some objects are crowds, which nothing has to find."""
    return dataclasses.replace(matches, crowd=matches.crowd | objects)


def _gain(matches, classes, base):
    return max(0., _ap50(matches, classes) - base)


def _ap50(matches, classes):
    """Mean over the classes that have objects; 0 where none has."""
    values = [curves.average_precision(curves.of_class(matches, label)) for label in range(classes)]
    values = [value for value in values if value >= 0]
    return sum(values) / max(len(values), 1)
