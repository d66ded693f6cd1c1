"""What a detector found in one image: as arrays, as single detections, drawn, and in the forms of other tools."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from htd_jax.data import Category
from htd_jax.errors import UserError
from htd_jax.evaluation import coco, drawing

if TYPE_CHECKING:
    import supervision


@dataclasses.dataclass(frozen=True, slots=True)
class Detection:
    """One object: name and number of its class, score 0..1, box (x1, y1, x2, y2) in pixels of the image given."""

    label: str
    label_id: int
    score: float
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ImageDetections(Sequence):
    """The detections of one image, best first; a sequence of `Detection`.

    Attributes:
      boxes: x1 y1 x2 y2 in pixels of the image given.
      scores: 0..1.
      labels: numbers of the classes.
      categories: the (id, name) of each number.
      image_name: of the image: its path, or "array 3".
      image: () -> its pixels, RGB; a file is read again.
    """

    boxes: Float32[np.ndarray, "N 4"]
    scores: Float32[np.ndarray, " N"]
    labels: Int32[np.ndarray, " N"]
    categories: tuple[Category, ...]
    image_name: str
    image: Callable[[], UInt8[np.ndarray, "H W 3"]]

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.categories[label].name for label in self.labels]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: Any) -> "Detection | ImageDetections":
        """One `Detection` for a number; `ImageDetections` for a slice, a mask [N] or an array of numbers."""
        if isinstance(which, (int, np.integer)):
            label = int(self.labels[which])
            return Detection(self.categories[label].name, label, float(self.scores[which]),
                             tuple(self.boxes[which].tolist()))
        which = which if isinstance(which, slice) else np.asarray(which)
        return dataclasses.replace(self, boxes=self.boxes[which], scores=self.scores[which], labels=self.labels[which])

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a sequence of the same detections."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def above(self, score: float | int) -> "ImageDetections":
        """Those with at least this score."""
        return self[self.scores >= score]

    def to_coco(self, image_id: int | str | None = None) -> list[dict]:
        """COCO results: `image_id` (the image's name unless given), `category_id`, `bbox` x y width height, `score`."""
        found = dict(boxes=self.boxes, scores=self.scores, labels=self.labels, valid=np.ones(len(self), bool))
        ids = [category.id for category in self.categories]
        return coco.to_results(self.image_name if image_id is None else image_id, found, ids)

    def draw(self) -> Image.Image:
        """The image with boxes, names and scores on it."""
        names = [category.name for category in self.categories]
        return drawing.draw(self.image(), self.boxes, self.labels, self.scores, names)

    def to_supervision(self) -> "supervision.Detections":
        """supervision.Detections with the names as `class_name`; UserError where supervision is not installed."""
        try:
            import supervision
        except ImportError as error:
            raise UserError('to_supervision() needs supervision: pip install "htd_jax[supervision]"') from error
        return supervision.Detections(xyxy=self.boxes, confidence=self.scores, class_id=self.labels.astype(int),
                                      data=dict(class_name=np.array(self.names, dtype=str)))
