"""What a dataset says about one image, whatever it is read from, and its ground truth in COCO's form."""
import dataclasses
from typing import NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8


class Category(NamedTuple):
    """A class as its annotations name it; label i is the i-th category of the file."""

    id: int | str
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image. Boxes are x1 y1 x2 y2 in pixels of the original image, not clipped."""

    image_id: int | str  # the original one
    name: str  # of the file, for messages
    height: int
    width: int
    boxes: Float32[np.ndarray, "G 4"]
    labels: Int32[np.ndarray, " G"]  # indices of categories
    crowd: Bool[np.ndarray, " G"]  # boxes around a crowd, which training leaves out


@runtime_checkable
class Images(Protocol):
    """Images by row: all that batches are made of."""

    def __len__(self) -> int: ...

    def record(self, index: SupportsIndex) -> Record:
        """Cheap: nothing is decoded."""

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        """RGB; raises UserError, naming the file, where it cannot be read."""


@runtime_checkable
class Dataset(Images, Protocol):
    """Images with classes and ground truth."""

    categories: tuple[Category, ...]

    def ground_truth(self) -> dict:
        """In COCO's format, for pycocotools, with the original ids."""


def coco_ground_truth(dataset: Dataset) -> dict:
    """The ground truth of a dataset that has no annotation file; areas are the boxes'."""
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
