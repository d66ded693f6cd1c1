"""An evaluation of five images, made by hand, for tests of its page."""
import numpy as np
from ml_collections import ConfigDict

from htd_jax.data import Category, Record
from htd_jax.data.records import coco_ground_truth
from htd_jax.evaluation import coco, report

BOX = np.float32([[10, 10, 40, 40]])
# Image, class id, box x y width height, score. Image 1 is missed, 2 has a false dog, 3 only a detection of background.
RESULTS = [(0, 7, [10, 10, 30, 30], .9), (2, 7, [10, 10, 30, 30], .8), (2, 2, [70, 50, 9, 9], .7),
           (3, 7, [60, 50, 10, 5], .2995), (4, 7, [10, 10, 30, 30], .6)]


class Images:
    """Dataset of n images of 60 x 80 with one cat each, and a crowd on the first; dogs have the lower category id."""

    categories = (Category(7, "cat"), Category(2, "<b>dog"))

    def __init__(self, n=5):
        self.n = n

    def __len__(self):
        return self.n

    def record(self, i):
        boxes = np.concatenate([BOX, np.float32([[50, 20, 75, 55]])]) if i == 0 else BOX
        return Record(i, f"{i}<.jpg", 60, 80, boxes, np.zeros(len(boxes), np.int32), np.arange(len(boxes)) == 1)

    def image(self, i):
        return np.full((60, 80, 3), 40 * i % 256, np.uint8)

    def ground_truth(self):
        return coco_ground_truth(self)


def evaluation():
    rows = [dict(zip(("image_id", "category_id", "bbox", "score"), row)) for row in RESULTS]
    return coco.evaluation(Images().ground_truth(), rows)


def metrics():
    return coco.metrics(evaluation(), Images().ground_truth()["categories"])


def write(path, run=None):
    """Writes the page and returns its path."""
    report.write(path, metrics(), evaluation(), Images(), ConfigDict({"a": 1}), "eval.py --config 'a & b'", run)
    return path
