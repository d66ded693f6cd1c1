"""The images of an evaluation as rows of its page: objects, detections with their errors, pictures of the worst."""
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from htd_jax.data import Dataset
from htd_jax.evaluation import coco, pages
from htd_jax.evaluation.matches import RIGHT, Matches


def of(found: Matches, dataset: Dataset, threshold: float) -> list[dict]:
    """The images with most errors at a score of `threshold` first, until the page is full.

    Each row has `name`, `objects` (class, crowd), `detections` (class, score in thousandths rounded down, kind of
    error, number of the object taken or -1). Those that have a `picture` continue each with a box: x, y, width, height
    in thousandths of the image.
    """
    count = len(dataset)
    place = coco.ranks(dataset.record(i).image_id for i in range(count))
    rank = np.array([place[dataset.record(i).image_id] for i in range(count)], np.int64)
    order = np.argsort(-wrong(found, count, threshold)[rank], kind="stable")
    return list(pages.within_budget(_pair(found, dataset, int(i), int(rank[i])) for i in order))


def wrong(found: Matches, images: int, threshold: float) -> Int64[np.ndarray, " images"]:
    """False detections and missed objects of each image, when detections below `threshold` are cut."""
    shown = found.counted & (found.score >= threshold)
    hits = shown & (found.kind == RIGHT)
    count = lambda rows: np.bincount(rows, minlength=images)
    missed = count(found.true_image[~found.crowd]) - count(found.image[hits])
    return count(found.image[shown & ~hits]) + missed


def _pair(found, dataset, index, rank):
    """An image's row without its picture, and the function that adds it."""
    record = dataset.record(index)
    objects = range(*np.searchsorted(found.true_image, [rank, rank + 1]).tolist())
    detections = range(*np.searchsorted(found.image, [rank, rank + 1]).tolist())
    row = dict(name=record.name, objects=[[int(found.true_label[k]), int(found.crowd[k])] for k in objects],
               detections=list(_detections(found, detections, objects.start)))

    def illustrated():
        box = lambda boxes, k: pages.thousandths(boxes[k], record.width, record.height)
        pairs = lambda values, rows, boxes: [value + box(boxes, k) for value, k in zip(values, rows)]
        return dict(row, objects=pairs(row["objects"], objects, found.true_box),
                    detections=pairs(row["detections"], detections, found.box),
                    picture=pages.jpeg(dataset.image(index)))

    return row, illustrated


def _detections(found, rows, first_object) -> Iterator[list[int]]:
    for k in rows:
        took = int(found.took[k] - first_object) if found.took[k] >= 0 else -1
        yield [int(found.label[k]), int(found.score[k] * 1000 + 1e-9), int(found.kind[k]), took]
