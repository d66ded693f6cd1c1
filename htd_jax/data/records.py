"""What a data set says about one image, whatever it is read from, and its ground truth in COCO's form."""
import dataclasses
from typing import NamedTuple

import numpy as np


class Category(NamedTuple):
    """A class as its annotations name it; label i is the i-th category of the file."""

    id: int
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image.

    Attributes:
      image_id: the original id.
      name: file name, for messages.
      height, width: pixels.
      boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the original image, not clipped.
      labels: int32 [n], index into the categories.
      crowd: bool [n], boxes around a crowd, which training leaves out.
    """

    image_id: int
    name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


def coco_ground_truth(dataset):
    """The COCO-format dict (for pycocotools) of a data set that has no annotation file; areas are the boxes'."""
    images, annotations = [], []
    for index in range(len(dataset)):
        record = dataset.record(index)
        images.append(dict(id=record.image_id, file_name=record.name, height=record.height, width=record.width))
        for box, label, crowd in zip(record.boxes.astype(float), record.labels, record.crowd):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(dict(
                id=len(annotations) + 1, image_id=record.image_id, category_id=dataset.categories[label].id,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=int(crowd),
            ))
    categories = [category._asdict() for category in dataset.categories]
    return dict(images=images, annotations=annotations, categories=categories)
