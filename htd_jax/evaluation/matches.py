"""Which detection took which object at IoU .5, read from the COCO API's own matching, and what each error is."""
import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

FOREGROUND, BACKGROUND = .5, .1  # IoU from which a detection is right, and up to which it lies on background
KINDS = ("right", "localisation", "class", "duplicate", "background", "both", "ignored")
RIGHT, LOCALISATION, CLASS, DUPLICATE, BACKGROUND_ERROR, BOTH, IGNORED = range(7)


@dataclasses.dataclass(frozen=True)
class Matches:
    """All D detections that the COCO API counts, and all T objects, image by image; images and classes by their rank.

    A detection that lies on a crowd of its class is neither right nor wrong. Those of an image and class are in
    descending order of score.
    """

    image: Int64[np.ndarray, " D"]
    label: Int64[np.ndarray, " D"]
    box: Float64[np.ndarray, "D 4"]  # x, y, width, height in pixels
    score: Float64[np.ndarray, " D"]
    took: Int64[np.ndarray, " D"]  # the object, -1 for none
    kind: Int64[np.ndarray, " D"]  # index of KINDS
    near: Int64[np.ndarray, " D"]  # the object that a localisation or class error would take once mended, else -1
    true_image: Int64[np.ndarray, " T"]
    true_label: Int64[np.ndarray, " T"]
    true_box: Float64[np.ndarray, "T 4"]
    crowd: Bool[np.ndarray, " T"]
    taken: Bool[np.ndarray, " T"]

    @property
    def counted(self) -> Bool[np.ndarray, " D"]:
        """Detections that are right or wrong."""
        return self.kind != IGNORED

    def positives(self, classes: int) -> Int64[np.ndarray, " classes"]:
        """Objects of each class, without crowds."""
        return np.bincount(self.true_label[~self.crowd], minlength=classes)


def read(evaluation: COCOeval) -> Matches:
    """The matches of an evaluation that has run, at its first IoU threshold, which is .5.

    The kinds of error are those of TIDE (Bolya et al., ECCV 2020) at its thresholds .5 and .1.
    """
    truth, found = _objects(evaluation.cocoGt), _objects(evaluation.cocoDt)
    took, ignored, counted = _taken(evaluation, len(found["image"]))
    taken = np.zeros(len(truth["image"]), bool)
    took[ignored] = -1
    taken[took[took >= 0]] = True
    kind, near = np.where(ignored, IGNORED, RIGHT), np.full(len(took), -1)
    for own, objects in _by_image(found["image"], truth["image"]):
        own, objects = own[counted[own]], objects[~truth["crowd"][objects]]
        wrong = own[(took[own] < 0) & ~ignored[own]]
        kind[wrong], near[wrong] = _kinds(wrong, objects, found, truth, taken)
    order = np.flatnonzero(counted)
    order = order[np.lexsort((-found["score"][order], found["label"][order], found["image"][order]))]
    return Matches(**{name: found[name][order] for name in ("image", "label", "box", "score")}, took=took[order],
                   kind=kind[order], near=near[order], true_image=truth["image"], true_label=truth["label"],
                   true_box=truth["box"], crowd=truth["crowd"], taken=taken)


def _objects(coco):
    """The annotations of a COCO object as arrays. They are numbered from 1, image by image."""
    rows = coco.dataset["annotations"]
    return dict(image=np.array([a["image_id"] for a in rows], np.int64),
                label=np.array([a["category_id"] for a in rows], np.int64),
                box=np.array([a["bbox"] for a in rows], np.float64).reshape(-1, 4),
                score=np.array([a.get("score", 0) for a in rows], np.float64),
                crowd=np.array([bool(a["iscrowd"]) for a in rows], bool))


def _taken(evaluation, count):
    """Of each detection: the row of the object it took, whether it is ignored, and whether it is counted at all.

    COCO counts the 100 best of an image and class.
    """
    took, ignored, counted = np.full(count, -1), np.zeros(count, bool), np.zeros(count, bool)
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    for start in range(0, len(evaluation.evalImgs), max(images * areas, 1)):  # a class; the first area is all
        for result in filter(None, evaluation.evalImgs[start : start + images]):
            rows = np.array(result["dtIds"], np.int64) - 1
            took[rows] = result["dtMatches"][0].astype(np.int64) - 1
            ignored[rows], counted[rows] = result["dtIgnore"][0], True
    return took, ignored, counted


def _by_image(found, truth) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each image that has detections: the rows of these, and of its objects."""
    images = np.unique(found)
    detections, objects = np.argsort(found, kind="stable"), np.argsort(truth, kind="stable")
    edges = [np.searchsorted(values[order], images, side) for values, order in ((found, detections), (truth, objects))
             for side in ("left", "right")]
    for a, b, c, d in zip(*edges):
        yield detections[a:b], objects[c:d]


def _kinds(wrong, objects, found, truth, taken):
    """The kind of error of each wrong detection of one image, and the object that mending it would give it."""
    kind, near = np.full(len(wrong), BACKGROUND_ERROR), np.full(len(wrong), -1)
    if not len(wrong) or not len(objects):
        return kind, near
    overlap = mask.iou(found["box"][wrong], truth["box"][objects], [False] * len(objects))
    same = found["label"][wrong][:, None] == truth["label"][objects][None]
    best = lambda among: (np.where(among, overlap, 0).max(1), objects[np.where(among, overlap, 0).argmax(1)])
    (own, own_object), (other, other_object) = best(same), best(~same)
    place, name = (own >= BACKGROUND) & (own <= FOREGROUND), other >= FOREGROUND
    double = best(same & taken[objects][None])[0] >= FOREGROUND
    kind[overlap.max(1) > BACKGROUND] = BOTH
    for row, value in ((double, DUPLICATE), (name, CLASS), (place, LOCALISATION)):  # the last wins
        kind[row] = value
    near[name] = other_object[name]
    near[place] = own_object[place]
    return kind, near
