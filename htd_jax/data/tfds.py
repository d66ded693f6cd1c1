"""TFDS sets: `coco/2017` and any other with image, box and label features, read without TensorFlow."""
import os
import pathlib
from typing import SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from htd_jax.data import coco_classes, coco_json, images, tfds_index
from htd_jax.data.coco import usable
from htd_jax.data.records import Category, Record, coco_ground_truth
from htd_jax.errors import UserError

SPLITS = dict(train=("train",), val=("validation", "val", "valid", "test"))
NARROWEST = 1 - 1e-3  # pixels; section 1's smallest box side, less what float32 shares of the image cost


class TfdsDataset:
    """A split of a prepared TFDS set; see `records.Dataset`.

    Filtered as CocoDataset is, except that the set's `area`, cut to whole pixels, removes no box.
    """

    def __init__(self, directory: str | os.PathLike, split: str, training: bool = False,
                 annotations: str | os.PathLike | None = None):
        """Opens a set.

        Args:
          directory: the folder with its dataset_info.json.
          training: whether to leave out images of less than 32 pixels or without annotation.
          annotations: the official JSON of the same images, for the ground truth of AP, or None.
        Raises UserError: no such set or split, no usable features, damaged files.
        """
        self._directory, self._split = pathlib.Path(directory), split
        self._builder = tfds.builder_from_directory(os.fspath(directory))
        if split not in self._builder.info.splits:
            raise UserError(f"TFDS set {directory} has no split {split!r}, only {', '.join(self._builder.info.splits)}")
        self._fields = tfds_index.find_fields(self._builder.info.features, directory)
        self._records = tfds_index.open_records(self._builder, split)
        self._index = tfds_index.load_index(self._builder, split, self._fields, self._records)
        heading = self._heading(annotations) if annotations else None
        self._annotations = annotations if heading else None
        self.categories = self._categories(heading)
        annotated = np.diff(self._index["starts"]) > 0
        self._rows = usable(annotated, self._index["sizes"]) if training else np.arange(len(self._records))
        if not len(self._rows):
            raise UserError(f"split {split} of TFDS set {directory} has no usable image")
        logging.info("%s %s: using %d of %d images", directory, split, len(self._rows), len(self._records))

    @classmethod
    def from_config(cls, config: ConfigDict, split: str) -> "TfdsDataset":
        """`config.data.tfds`; for AP with the JSON `config.data.val.annotations` where that is of the same images."""
        directory = tfds_index.find_set(config.data.tfds.name, config.data.tfds.dir)
        splits = tfds.builder_from_directory(os.fspath(directory)).info.splits
        name = next((name for name in SPLITS[split] if name in splits), SPLITS[split][0])
        annotations = config.data.val.annotations if split == "val" else None
        return cls(directory, name, split == "train", annotations)

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: SupportsIndex) -> Record:
        row, of = self._rows[index], self._index
        height, width = of["sizes"][row].tolist()
        own = slice(of["starts"][row], of["starts"][row + 1])
        boxes, labels, crowd = of["boxes"][own], of["labels"][own], of["crowd"][own]
        kept = (boxes[:, 2:] - boxes[:, :2] >= NARROWEST).all(1)
        return Record(int(of["ids"][row]), str(of["names"][row]), height, width, boxes[kept], labels[kept], crowd[kept])

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        row = int(self._rows[index])
        data = tfds_index.parse(self._builder, self._fields, self._records[row])[self._fields.image]
        name = f"{self._index['names'][row]} of TFDS set {self._directory}"
        return images.decode(data, name, tuple(self._index["sizes"][row].tolist()))

    def ground_truth(self) -> dict:
        """The official JSON where it was given, of the images of this split; otherwise made from the set."""
        if self._annotations is None:
            return coco_ground_truth(self)
        return coco_json.read(self._annotations).ground_truth(self._index["ids"].tolist())

    def _heading(self, annotations):
        """That of an annotation file that exists and knows all images and as many categories; else None."""
        problem = "does not exist"
        if os.path.exists(annotations):
            heading = coco_json.read(annotations)
            known = {str(image.id) for image in heading.images}.issuperset(map(str, self._index["ids"].tolist()))
            if known and len(heading.categories) == self._class_label.num_classes:
                return heading
            problem = "is of other images or categories"
        logging.warning("%s %s: AP is against the boxes of %s", annotations, problem, self._directory)
        return None

    @property
    def _class_label(self):
        return self._builder.info.features[self._fields.objects].feature[self._fields.label]

    def _categories(self, heading):
        """Original ids and names: the JSON's, else those that `prepare` wrote, else COCO's, else numbered from 1."""
        if heading:
            return tuple(Category(c.id, c.name) for c in heading.categories)
        if listed := (self._builder.info.metadata or {}).get("categories"):
            return tuple(Category(int(c["id"]), str(c["name"])) for c in listed)
        names = self._class_label.names
        if self._builder.name == "coco" and len(names) == len(coco_classes.IDS):
            return tuple(map(Category, coco_classes.IDS, coco_classes.NAMES))  # the stock set has neither
        return tuple(Category(i + 1, name) for i, name in enumerate(names))
