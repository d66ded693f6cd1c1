"""Scoring by the COCO API (pycocotools): the 12 box numbers and the AP of each class.

A number for which there is no ground truth (no small objects, a class that never occurs, a test set
without annotations) is -1, as the COCO API gives it; it is never counted in a mean.
"""
import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from htd_jax.errors import UserError
from htd_jax.evaluation import curves, matches

AREAS = ("all", "small", "medium", "large")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def to_results(image_id: int | str, detections: dict[str, np.ndarray],
               category_ids: Sequence[int | str]) -> list[dict]:
    """The detections of one image as COCO results, in the same order; rows that are not valid are left out.

    Args:
      detections: `boxes` [N, 4] x1 y1 x2 y2 in pixels of the original image, `scores`, `labels`, `valid` [N].
      category_ids: the original category id of label i is `category_ids[i]`.
    Returns:
      Dicts `image_id`, `category_id`, `bbox` (x, y, width, height; 3 decimals), `score` (6 decimals).
    Raises UserError: a box or score is not finite, which is what the weights of a diverged run give.
    """
    keep = np.asarray(detections["valid"], bool)
    boxes = np.asarray(detections["boxes"], np.float64)[keep]
    scores = np.asarray(detections["scores"], np.float64)[keep]
    labels = np.asarray(detections["labels"])[keep]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError(f"detections of image {image_id!r} are not finite: the weights are damaged or diverged")
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(3)
    return [{"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(labels.tolist(), xywh.tolist(), scores.round(6).tolist())]


def score(ground_truth: dict, results: list[dict]) -> dict:
    """What `metrics` gives of an `evaluation` of these results."""
    return metrics(evaluation(ground_truth, results), ground_truth["categories"])


def evaluation(ground_truth: dict, results: list[dict]) -> COCOeval:
    """COCO's box evaluation, run and accumulated; images, categories and annotations are numbered in its own way.

    Args:
      ground_truth: `images`, `annotations`, `categories` in COCO's format. Image ids may be integers, floats or
        strings; `iscrowd` and `area` are filled in (0, width x height) where absent or null. Every image that it lists
        counts, also one without boxes or without detections.
      results: COCO results (`to_results`).
    Raises UserError: a result names an image or category that the ground truth does not list.
    """
    images = ranks(image["id"] for image in ground_truth["images"])
    categories = ranks(category["id"] for category in ground_truth["categories"])
    listed = ground_truth.get("annotations") or ()
    truth = [_annotation(a, images, categories) for a in listed if a["image_id"] in images]
    found = [_detection(r, images, categories) for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        result = COCOeval(_coco(truth, images, categories), _coco(found, images, categories), "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    return result


def metrics(result: COCOeval, categories: Sequence[dict]) -> dict:
    """The 12 numbers of COCO's box evaluation, the AP of each class, and the best scores to cut at.

    Args:
      result: of `evaluation`.
      categories: of the ground truth, in its order.
    Returns:
      The names in `METRICS` (floats in 0..1, or -1 where there is no ground truth), then `per_class` (class name -> AP)
      and `images` (how many counted). `best_f1_score_threshold`: when detections below it are cut, F1 at IoU .5 over
      all classes is greatest, namely `best_f1`; `best_f1_score_threshold_per_class` for each class by itself.
    """
    numbers = {name: float(value) for name, value in zip(METRICS, result.stats)}
    names, place = class_names(categories), ranks(category["id"] for category in categories)
    labels = [place[category["id"]] for category in categories]
    matched = matches.read(result)
    threshold, f1 = curves.best_threshold(curves.of_class(matched))
    each = [curves.best_threshold(curves.of_class(matched, label))[0] for label in labels]
    return numbers | {"per_class": {name: average_precision(result, label) for name, label in zip(names, labels)},
                      "images": len(result.params.imgIds), "best_f1_score_threshold": threshold, "best_f1": f1,
                      "best_f1_score_threshold_per_class": dict(zip(names, each))}


def average_precision(result: COCOeval, label: int, area: str = "all") -> float:
    """AP over IoU .5:.95 of the class of rank `label`, of 100 detections an image; -1 without ground truth."""
    values = result.eval["precision"][:, :, label, AREAS.index(area), -1]  # IoU, recall
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def class_names(categories: Sequence[dict]) -> list[str]:
    """The names; a repeated one gets its id appended."""
    names = []
    for category in categories:
        name = category["name"]
        names.append(name if name not in names else f"{name} ({category['id']})")
    return names


def ranks(ids: Iterable) -> dict:
    """Original id -> 0, 1, ... in ascending order, the COCO API's own, which decides among equal scores."""
    ordered = sorted(set(ids), key=lambda i: (isinstance(i, str), i))
    return {original: rank for rank, original in enumerate(ordered)}


def table(metrics: dict) -> str:
    """The 12 numbers as lines to print."""
    lines = [f"{name:>6} {metrics[name]:.4f}" if metrics[name] > -1 else f"{name:>6}      -" for name in METRICS]
    if all(metrics[name] == -1 for name in METRICS):
        lines = ["no ground truth: there is nothing to score"]
    return "\n".join([*lines, f"images {metrics['images']}"])


def _annotation(annotation, images, categories):
    x, y, width, height = annotation["bbox"]
    if annotation["category_id"] not in categories:
        raise UserError(f"annotation {annotation.get('id')!r} has category id {annotation['category_id']!r}, "
                        "which is not in the list of categories")
    area = annotation.get("area")
    return {"image_id": images[annotation["image_id"]], "category_id": categories[annotation["category_id"]],
            "bbox": [x, y, width, height], "area": width * height if area is None else area,
            "iscrowd": int(annotation.get("iscrowd") or 0)}


def _detection(result, images, categories):
    for key, known in (("image_id", images), ("category_id", categories)):
        if result[key] not in known:
            raise UserError(f"a detection has {key} {result[key]!r}, which the ground truth does not list")
    _, _, width, height = result["bbox"]
    return {"image_id": images[result["image_id"]], "category_id": categories[result["category_id"]],
            "bbox": list(result["bbox"]), "area": width * height, "iscrowd": 0, "score": result["score"]}


def _coco(annotations, images, categories):
    """A COCO object of these annotations, image by image, numbered from 1: the API takes a match with 0 for none."""
    annotations, coco = sorted(annotations, key=lambda a: a["image_id"]), COCO()
    coco.dataset = {"images": [{"id": i} for i in images.values()],
                    "categories": [{"id": i} for i in categories.values()],
                    "annotations": [{**a, "id": i} for i, a in enumerate(annotations, start=1)]}
    coco.createIndex()
    return coco
