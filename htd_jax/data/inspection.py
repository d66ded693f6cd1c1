"""A configuration's data looked at as a whole before training: annotations, image files, and both splits together."""
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from htd_jax.data import box_inspection, file_inspection, layouts, open_dataset
from htd_jax.data.box_inspection import Finding
from htd_jax.data.coco_folder import CocoFolder
from htd_jax.data.content import Content, of_dataset, read_coco
from htd_jax.data.file_inspection import File
from htd_jax.errors import UserError


class Inspected(NamedTuple):
    """One split: what its annotations say, its files, and what was found."""

    content: Content
    files: list[File]
    findings: list[Finding]


def inspect(config: ConfigDict, anchors: Sequence[int]) -> dict[str, Inspected]:
    """{split: findings} of the splits that can be read at all; `anchors` are the sides of the anchors in pixels."""
    found = {}
    for split in ("train", "val"):
        try:
            content = open_content(config, split)
        except (UserError, ImportError):
            continue
        files = file_inspection.look(content, f"files, {split}")
        found[split] = Inspected(content, files, [
            *box_inspection.entries(content), *box_inspection.boxes(content), *box_inspection.classes(content),
            *(box_inspection.against_anchors(content, config.data.scale, anchors) if split == "train" else ()),
            *file_inspection.faults(content, files), *file_inspection.duplicates(content, files)])
    if len(found) == 2:
        train, val = found["train"], found["val"]
        val.findings.extend(file_inspection.shared(val.content, val.files, train.content, train.files))
    return found


def open_content(config: ConfigDict, split: str) -> Content:
    """What the annotations of a split say; those of a COCO file with all their faults, others as the data set has them.

    Raises UserError where they cannot be read at all.
    """
    data = config.data
    if data.source == "coco" and (not data.root or layouts.is_set(data[split])):
        return read_coco(data[split].annotations, data[split].images)
    if not data.root or data.source not in ("coco", "yolo", "voc"):
        return of_dataset(open_dataset(config, split))
    folder, name, holds_out = layouts.place(config, split)
    if isinstance(folder, CocoFolder) and not holds_out and name in folder.places:
        return read_coco(*folder.places[name])
    return of_dataset(open_dataset(config, split), folder.image_root(name))
