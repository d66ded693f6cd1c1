"""Scoring by the COCO API (pycocotools): the 12 box numbers and the AP of each class.

A number for which there is no ground truth (no small objects, a class that never occurs, a test set
without annotations) is -1, as the COCO API gives it; it is never counted in a mean.
"""
import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from htd_jax.errors import UserError

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
    """The 12 numbers of COCO's box evaluation, and the AP of each class.

    Args:
      ground_truth: `images`, `annotations`, `categories` in COCO's format. Image ids may be integers, floats or
        strings; `iscrowd` and `area` are filled in (0, width x height) where absent or null. Every image that it lists
        counts, also one without boxes or without detections.
      results: COCO results (`to_results`).
    Returns:
      The names in `METRICS` (floats in 0..1, or -1 where there is no ground truth), then `per_class` (class name -> AP)
      and `images` (how many counted).
    Raises UserError: a result names an image or category that the ground truth does not list.
    """
    images = _ranks(image["id"] for image in ground_truth["images"])
    categories = _ranks(category["id"] for category in ground_truth["categories"])
    listed = ground_truth.get("annotations") or ()
    truth = [_annotation(a, images, categories) for a in listed if a["image_id"] in images]
    found = [_detection(r, images, categories) for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(truth, images, categories), _coco(found, images, categories), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: float(value) for name, value in zip(METRICS, evaluation.stats)}
    per_class = _per_class(evaluation, ground_truth["categories"], categories)
    return numbers | {"per_class": per_class, "images": len(images)}


def table(metrics: dict) -> str:
    """The 12 numbers as lines to print."""
    lines = [f"{name:>6} {metrics[name]:.4f}" if metrics[name] > -1 else f"{name:>6}      -" for name in METRICS]
    if all(metrics[name] == -1 for name in METRICS):
        lines = ["no ground truth: there is nothing to score"]
    return "\n".join([*lines, f"images {metrics['images']}"])


def _ranks(ids):
    """Original id -> 0, 1, ... in ascending order, the COCO API's own, which decides among equal scores."""
    ordered = sorted(set(ids), key=lambda i: (isinstance(i, str), i))
    return {original: rank for rank, original in enumerate(ordered)}


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
    """A COCO object of these annotations, numbered from 1: the API takes a match with id 0 for none."""
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in images.values()],
                    "categories": [{"id": i} for i in categories.values()],
                    "annotations": [{**a, "id": i} for i, a in enumerate(annotations, start=1)]}
    coco.createIndex()
    return coco


def _per_class(evaluation, categories, ranks):
    """Class name -> AP over IoU .5:.95, all areas, 100 detections; a repeated name gets its id appended."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
    per_class = {}
    for category in categories:
        values = precision[:, :, ranks[category["id"]]]
        name = category["name"] if category["name"] not in per_class else f"{category['name']} ({category['id']})"
        per_class[name] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
    return per_class
