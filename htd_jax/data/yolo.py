"""YOLO's layout: data.yaml, images in `images/`, beside it `labels/` with a text file for each image.

In place of data.yaml there may be classes.txt with a name a line, as Label Studio writes it; all images are then
`train`, or those in images/train, if there is such a folder.

A line of a label file is `class cx cy w h` in shares of the image, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose
bounding box is taken. An empty or missing label file is an image without objects.
"""
import os
import pathlib
from typing import Any

import numpy as np
import yaml

from htd_jax.data import images
from htd_jax.data.listed import ListedDataset, find_images, make_record, relative
from htd_jax.data.records import Record
from htd_jax.data.user_images import file_size
from htd_jax.errors import UserError

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}  # split -> keys of data.yaml and folders
_CLASSES = "classes.txt"
_SLACK = 0.01  # of the image, by which rounding may put a box outside


class YoloFolder:
    """What a data.yaml says: `names` of the classes and, for each split, its `folders`."""

    def __init__(self, root: str | os.PathLike):
        """`root`: the folder, or the YAML file itself. UserError where the file is missing or says neither."""
        self.path = yaml_of(pathlib.Path(root))
        if self.path is None:
            raise UserError(f"{root} is no YOLO folder: it has no data.yaml; write one with `train`, `val` and `names`")
        self._content = _from_classes(self.path) if self.path.name == _CLASSES else _read_yaml(self.path)
        self.root, self.names = self.path.parent, _names(self._content, self.path)
        self.folders = {split: self._places(keys) for split, keys in SPLITS.items()}
        self.folders = {split: places for split, places in self.folders.items() if places}
        if not self.folders:
            raise UserError(f"{self.path} has none of the keys train, val and test: give each the folder of its images")

        self.splits = {split: ", ".join(map(str, places)) for split, places in self.folders.items()}

    def image_root(self, split: str) -> pathlib.Path:
        return self.root

    def open(self, split: str, training: bool = False) -> ListedDataset:
        """The images of a split with their boxes. UserError names the label file and line that cannot be used."""
        paths = [path for place in self.folders[split] for path in _images_of(place, self.path)]
        entries = [(path, self._record(number, path)) for number, path in enumerate(paths, start=1)]
        labelled = sum(label_path(path).is_file() for path in paths)
        if training and not labelled:
            raise UserError(f"{self.path}: none of the {len(paths)} images of {split} has a label file; the first "
                            f"would be {label_path(paths[0])}")
        return ListedDataset(entries, self.names, f"{self.path}, {split},", training)

    def _record(self, number: int, path: pathlib.Path) -> Record:
        size = file_size(path)
        labels, boxes = read_labels(label_path(path), len(self.names))
        pixels = boxes * [size.width, size.height, size.width, size.height]
        return make_record(number, relative(path, self.root), size, pixels, labels, [False] * len(labels))

    def _places(self, keys):
        given = next((self._content[key] for key in keys if self._content.get(key)), None)
        listed = given if isinstance(given, list) else [given] if given else []
        return [self._place(str(place)) for place in listed]

    def _place(self, given):
        """A folder or list of images. Exports write paths relative to `path`, to the file, or to a sibling of it."""
        base = self.root / str(self._content.get("path") or "")
        inner = pathlib.Path(*[part for part in pathlib.PurePath(given).parts if part != ".."])
        tried = [base / given, self.root / given, self.root / inner]
        found = next((place for place in tried if os.path.exists(place)), None)
        if found is None:
            raise UserError(f"{self.path} says {given!r}, but {tried[0]} does not exist; correct the path there")
        return found


def yaml_of(root: pathlib.Path) -> pathlib.Path | None:
    """data.yaml, another YAML file with `names`, or classes.txt in a folder; None where there is none."""
    if root.suffix in (".yaml", ".yml"):
        return root
    names = ("data.yaml", "data.yml", "dataset.yaml", *[_CLASSES] * (root / "labels").is_dir())
    usual = [root / name for name in names if (root / name).is_file()]
    others = [path for path in sorted(root.glob("*.y*ml")) if "names" in path.read_text("utf-8", errors="replace")]
    return next(iter(usual + others), None)


def label_path(image: pathlib.Path) -> pathlib.Path:
    """Where the labels of an image are: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return pathlib.Path(*parts).with_suffix(".txt")


def read_labels(path: pathlib.Path, classes: int) -> tuple[list[int], np.ndarray]:
    """Labels, and boxes float64 [n, 4] x1 y1 x2 y2 in shares of the image; none where there is no file.

    Raises UserError that names file and line of a class that is not listed, a word for a number, or a box outside 0..1.
    """
    if not path.is_file():
        return [], np.zeros((0, 4))
    lines = path.read_text("utf-8", errors="replace").splitlines()
    rows = [_row(line.split(), f"{path}, line {number}", classes)
            for number, line in enumerate(lines, start=1) if line.strip()]
    return [label for label, _ in rows], np.array([box for _, box in rows], np.float64).reshape(-1, 4)


def _row(words, where, classes):
    try:
        label, *values = map(float, words)
    except ValueError:
        raise UserError(f"{where}: {' '.join(words)[:60]!r} are not numbers; write `class cx cy w h`, the class as its "
                        "number in data.yaml, counted from 0") from None
    if label not in range(classes):
        raise UserError(f"{where}: class {words[0]}, but data.yaml lists {classes}, numbered 0 to {classes - 1}; "
                        "add it there or correct the line")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise UserError(f"{where}: {len(values)} numbers after the class; a box has 4 (cx cy w h), a polygon pairs of "
                        "at least 3 points")
    box = _box(values)
    if not np.isfinite(box).all() or min(box) < -_SLACK or max(box) > 1 + _SLACK:
        raise UserError(f"{where}: the box {' '.join(words[1:5])} reaches outside of 0..1; coordinates are shares of "
                        "the image's width and height, not pixels")
    return int(label), box


def _box(values):
    if len(values) == 4:
        cx, cy, w, h = values
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _read_yaml(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(images.read_bytes(path, "dataset"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"dataset file {path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"dataset file {path} holds no keys; it needs `train`, `val` and `names`")
    return content


def _from_classes(path):
    """What data.yaml would say."""
    lines = images.read_bytes(path, "class").decode("utf-8", "replace").splitlines()
    folders = {split: next((f"images/{name}" for name in names if (path.parent / "images" / name).is_dir()), None)
               for split, names in SPLITS.items()}
    content = dict(train="images", names=[line.strip() for line in lines if line.strip()])
    return content | {split: place for split, place in folders.items() if place}


def _names(content, path):
    """Of the classes, from a list, from {number: name}, or numbered where there is only `nc`."""
    names = content.get("names")
    if names is None and isinstance(content.get("nc"), int):
        return [f"class {i}" for i in range(content["nc"])]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: the numbers of `names` are {', '.join(map(str, names))}; they must count from 0 "
                            "without a gap")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has no `names`: list the classes there, in the order of their numbers")
    return [str(name) for name in names]


def _images_of(place, source):
    """The images of a folder, or of a text file with a path a line."""
    if place.is_dir():
        found = find_images(place)
    else:
        listed = place.read_text("utf-8").split("\n")
        found = [place.parent / line.strip() for line in listed if line.strip()]
    if not found:
        raise UserError(f"{place} (of {source}) has no image; looked for {', '.join(images.EXTENSIONS)}")
    if missing := [path for path in found if not path.is_file()]:
        raise UserError(f"image file {missing[0]}, listed in {place}, does not exist")
    return found
