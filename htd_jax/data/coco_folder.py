"""COCO's layout: annotation files named after their splits, and the folder of each one's images, both found by looking.

Annotation files are those in annotations/, in the folder itself, or in the folders train, valid (val) and test, as
Roboflow exports them (`_annotations.coco.json`).
"""
import os
import pathlib
import re
from typing import NamedTuple

from htd_jax.data import coco_json, file_names
from htd_jax.data.coco import CocoDataset
from htd_jax.errors import UserError

_SPLITS = {"train": r"train", "val": r"val(id(ation)?)?", "test": r"test(?!-?dev)"}  # split -> how names call it
_INSTANCES = "instances_"  # COCO's own prefix of detection files, beside captions_ and person_keypoints_


class Place(NamedTuple):
    """Where a split is."""

    annotations: pathlib.Path
    images: pathlib.Path


class CocoFolder:
    """What a folder holds: `places` of each split."""

    def __init__(self, root: str | os.PathLike):
        """UserError where it has no annotation file, two for one split, or images that are nowhere."""
        self.root = pathlib.Path(root)
        files = find_annotations(self.root)
        if not files:
            raise UserError(f"{root} is no COCO folder: it has no annotation file such as annotations/train.json")
        self.places = {split: Place(path, self._images(path, split)) for split, path in files.items()}
        self.splits = {split: f"{place.annotations} with images in {place.images}"
                       for split, place in self.places.items()}

    def open(self, split: str, training: bool = False) -> CocoDataset:
        return CocoDataset(*self.places[split], training)

    def image_root(self, split: str) -> pathlib.Path:
        """What the names of a split's images are relative to."""
        return self.places[split].images

    def _images(self, path, split):
        """The folder that has the first image which an annotation file lists."""
        listed = coco_json.read(path).images
        places = [place for folder in (self.root / "images", self.root)
                  for place in (folder / split, *sorted(folder.glob(f"{split}*/")), folder, *sorted(folder.glob("*/")))]
        tried = [path.parent, *places]
        exact = [folder for folder in tried if listed and (folder / listed[0].file_name).is_file()]
        found = exact or [folder for folder in tried if listed and _has(folder, listed[0].file_name, path)]
        if listed and not found:
            where = ", ".join(dict.fromkeys(str(folder) for folder in tried if folder.is_dir()))
            raise UserError(f"annotation file {path} lists {listed[0].file_name}, which is in none of {where}; set "
                            f"config.data.{split}.annotations and config.data.{split}.images")
        return found[0] if found else path.parent


def find_annotations(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{split: annotation file}; a single file that names no split is `train`. UserError where two are of one split."""
    folders = [root / name for name in ("train", "valid", "val", "validation", "test")]
    files = sorted([*root.glob("annotations/*.json"), *root.glob("*.json"),
                    *(path for folder in folders for path in folder.glob("*.json"))])
    by_split = {split: [path for path in files if _is_of(path.relative_to(root), pattern)]
                for split, pattern in _SPLITS.items()}
    found = {split: _one(paths, split) for split, paths in by_split.items() if paths}
    unnamed = [path for path in files if path.parent.name == "annotations" or "annotations" in path.name
               or path.name == "result.json"]  # Label Studio's
    return found or ({"train": _one(unnamed, "train")} if unnamed else {})


def _is_of(path, pattern):
    """Whether the file's own name, else its folder's, has the word."""
    matches = lambda text, pattern: re.search(rf"(?<![a-z]){pattern}(?![a-z])", text.lower())
    named = any(matches(path.stem, other) for other in _SPLITS.values())
    return bool(matches(path.stem if named else str(path.parent), pattern))


def _has(folder, name, annotations):
    """Whether the folder has an image, perhaps in another spelling."""
    try:
        return bool(file_names.locate([name], folder, annotations))
    except UserError:
        return False


def _one(paths, split):
    chosen = [path for path in paths if path.name.startswith(_INSTANCES)] or paths
    if len(chosen) > 1:
        raise UserError(f"{', '.join(map(str, chosen))} could all be the annotations of {split}; say which is, by "
                        f"config.data.{split}.annotations and config.data.{split}.images")
    return chosen[0]
