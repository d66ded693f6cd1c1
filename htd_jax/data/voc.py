"""Pascal VOC's layout: an XML file for each image, in Annotations/ beside JPEGImages/, or beside the image itself.

Splits are the lists in ImageSets/Main, or the folders train, valid and test; without either all images are `train`.
The classes are those that occur, in alphabetical order. An object that is `difficult` is treated as COCO's crowds are:
not trained on, and neither found nor missed in evaluation. Coordinates count from 1, as VOC's do.
"""
import contextlib
import os
import pathlib
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from htd_jax.data import images
from htd_jax.data.listed import Box, ListedDataset, find_images, make_record, relative
from htd_jax.errors import UserError

SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}  # split -> lists and folders
_MOST = 2**31  # pixels


class Annotation(NamedTuple):
    """What an XML file says; boxes are x1 y1 x2 y2 in pixels, counted from 0."""

    size: tuple[int, int]  # height, width
    names: list[str]
    boxes: list[Box]
    difficult: list[bool]


class VocFolder:
    """The annotated images of a folder: `names` of the classes and, for each split, pairs (image, XML file)."""

    def __init__(self, root: str | os.PathLike):
        """Reads every XML file. UserError names the file and what is wrong in it."""
        self.root = pathlib.Path(root)
        self.pairs = find_pairs(self.root)
        if not self.pairs:
            raise UserError(f"{root} is no VOC folder: it has no XML files in Annotations or beside its images")
        self._annotations = {xml: read_annotation(xml) for pairs in self.pairs.values() for _, xml in pairs}
        self.names = sorted({name for annotation in self._annotations.values() for name in annotation.names})
        if not self.names:
            raise UserError(f"{root}: none of its {len(self._annotations)} XML files has an object")

        self.splits = {split: f"{len(pairs)} images, the first {pairs[0][0]}" for split, pairs in self.pairs.items()}

    def image_root(self, split: str) -> pathlib.Path:
        return self.root

    def open(self, split: str, training: bool = False) -> ListedDataset:
        """The images of a split with their boxes."""
        label_of = {name: label for label, name in enumerate(self.names)}
        entries = []
        for number, (image, xml) in enumerate(self.pairs[split], start=1):
            size, names, boxes, difficult = self._annotations[xml]
            labels = [label_of[name] for name in names]
            entries.append((image, make_record(number, relative(image, self.root), size, boxes, labels, difficult)))
        return ListedDataset(entries, self.names, f"{self.root}, {split},", training)


def find_pairs(root: pathlib.Path) -> dict[str, list[tuple[pathlib.Path, pathlib.Path]]]:
    """{split: [(image, XML file)]} of a folder, empty where it is none of VOC's."""
    base = next((path for path in (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
                 if (path / "Annotations").is_dir()), None)
    if base is not None:
        return _listed(base)
    folders = {split: next((root / name for name in names if (root / name).is_dir()), None)
               for split, names in SPLITS.items()}
    found = {split: _beside(folder) for split, folder in folders.items() if folder}
    found = {split: pairs for split, pairs in found.items() if pairs}
    return found or {split: pairs for split, pairs in (("train", _beside(root)),) if pairs}


def read_annotation(path: pathlib.Path) -> Annotation:
    """Reads an XML file; UserError names it and what is wrong, for an object by its number and class."""
    try:
        root = ElementTree.fromstring(images.read_bytes(path, "annotation"))
    except ElementTree.ParseError as error:
        raise UserError(f"annotation file {path} is no XML: {error}") from None
    height, width = (_number(root, f"size/{side}", f"annotation file {path}") for side in ("height", "width"))
    if height < 1 or width < 1:
        raise UserError(f"annotation file {path} says that its image has {width:g} x {height:g} pixels (<size>); write "
                        "its real width and height there")
    objects = list(root.iter("object"))
    names = [(thing.findtext("name") or "").strip() for thing in objects]
    if "" in names:
        raise UserError(f"annotation file {path}: object {names.index('') + 1} has no <name>; give it its class")
    boxes = [_box(thing, f"annotation file {path}, object {number} ({name})")
             for number, (thing, name) in enumerate(zip(objects, names), start=1)]
    difficult = [(thing.findtext("difficult") or "0").strip() not in ("0", "") for thing in objects]
    return Annotation((int(height), int(width)), names, boxes, difficult)


def _box(thing, where):
    x1, y1, x2, y2 = (_number(thing, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    if x2 < x1 or y2 < y1:  # equal ones are a pixel apart: both ends are within the box
        raise UserError(f"{where}: the box from {x1:g}, {y1:g} to {x2:g}, {y2:g} (<bndbox>) ends before it begins; "
                        "correct it")
    return x1 - 1, y1 - 1, x2, y2


def _number(node, path, where):
    text = node.findtext(path)
    if text is None or not text.strip():
        raise UserError(f"{where} has no <{path.replace('/', '><')}>; add it, in pixels")
    with contextlib.suppress(ValueError):
        if abs(number := float(text)) < _MOST:  # nor is nan
            return number
    raise UserError(f"{where}: <{path.replace('/', '><')}> is {text!r}, not a number of pixels")


def _listed(base):
    """Splits by ImageSets/Main/SPLIT.txt, else one split of all XML files."""
    files = {path.stem: path for path in sorted((base / "Annotations").rglob("*.xml"))
             if not path.name.startswith(".")}
    image_of = {path.stem: path for path in find_images(_image_folder(base))}
    lists = {split: next((path for name in names if (path := base / "ImageSets/Main" / f"{name}.txt").is_file()), None)
             for split, names in SPLITS.items()}
    lists = {split: path for split, path in lists.items() if path}
    stems = {split: [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
             for split, path in lists.items()}
    for split, path in lists.items():
        for stem in stems[split]:
            if stem not in files or stem not in image_of:
                missing = "XML file in Annotations" if stem not in files else f"image in {_image_folder(base).name}"
                raise UserError(f"{path} lists {stem}, which has no {missing}; add it or take it off the list")
    if not lists:
        _check_images(files, image_of, base)
        stems = {"train": sorted(files)}
    return {split: [(image_of[stem], files[stem]) for stem in names] for split, names in stems.items() if names}


def _image_folder(base):
    return next((base / name for name in ("JPEGImages", "images", "Images") if (base / name).is_dir()), base)


def _beside(folder):
    """Pairs of image and XML file in one folder."""
    files = {path.stem: path for path in sorted(folder.glob("*.xml"))}
    image_of = {path.stem: path for path in find_images(folder)} if files else {}
    _check_images(files, image_of, folder)
    return [(image_of[stem], path) for stem, path in files.items()]


def _check_images(files, image_of, folder):
    if missing := [path for stem, path in files.items() if stem not in image_of]:
        raise UserError(f"annotation file {missing[0]} has no image of its name in {folder}; add it or remove the file")
