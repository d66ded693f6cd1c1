"""One picture of what was found in a data set's first images."""
import numpy as np

from htd_jax.evaluation import drawing
from htd_jax.evaluation.report import THRESHOLD

SHOWN = 12  # images
CELL = 448, 448  # pixels for each


def write(path, dataset, detections):
    """Writes a sheet of the first images, with the detections of at least `report.THRESHOLD`.

    Args:
      path: where to; its suffix is the format.
      dataset: gives `categories`, `record(i)` and `image(i)`.
      detections: list over the rows of `dataset` of dicts of arrays, as `runner.collect` gives them.
    """
    names = [category.name for category in dataset.categories]
    pictures = [_drawn(dataset.image(i), found, names) for i, found in enumerate(detections[:SHOWN])]
    if pictures:
        drawing.grid(pictures, columns=4, cell=CELL).save(path)


def _drawn(image, found, names):
    shown = np.asarray(found["scores"]) >= THRESHOLD
    boxes, labels, scores = (np.asarray(found[name])[shown] for name in ("boxes", "labels", "scores"))
    return drawing.draw(image, boxes, labels, scores, names)
