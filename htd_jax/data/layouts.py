"""One folder is enough: finds which layout `data.root` has, what in it is for training and validation, and says so."""
import functools
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from htd_jax.data import coco_folder, voc, yolo
from htd_jax.data.coco import UNSET, CocoDataset
from htd_jax.data.records import Dataset, Record, coco_ground_truth
from htd_jax.errors import UserError

log = logging.getLogger(__name__)
_KINDS = {
    "coco": (coco_folder.CocoFolder, coco_folder.find_annotations),
    "yolo": (yolo.YoloFolder, yolo.yaml_of),
    "voc": (voc.VocFolder, voc.find_pairs),
}
_LAYOUTS = ("COCO (annotations/*.json, or train/_annotations.coco.json), YOLO (data.yaml, images/, labels/) and VOC "
            "(Annotations/*.xml, JPEGImages/)")


@runtime_checkable
class Folder(Protocol):
    """A folder of one layout."""

    splits: dict[str, str]  # train, val, test: those that it has, and in words where they are

    def open(self, split: str, training: bool = False) -> Dataset: ...

    def image_root(self, split: str) -> pathlib.Path:
        """What the names of a split's images are relative to."""


def open_root(config: ConfigDict, split: str) -> Dataset:
    """Opens `train` or `val` of `config.data.root`; paths that are set in `config.data` win.

    Validation is the split `data.val_split`; where the folder has no validation, its test split; where it has neither,
    the share `data.holdout` of the training images, chosen by their names and the seed.
    """
    data, training = config.data, split == "train"
    if is_set(data[split]):
        return CocoDataset.from_config(config, split)
    if not data.root:
        raise UserError(f"data.source is {data.source!r}, but data.root is not set; set it to the folder")
    folder, name, holds_out = place(config, split)
    if name not in folder.splits:
        raise UserError(f"{data.root} has no images for training, only {', '.join(folder.splits)}; call them train")
    log.info("%s: %s: %s%s", data.root, split, folder.splits[name],
             f", {'less ' * training}{data.holdout:.0%} of its images, held out for validation" * holds_out)
    dataset = folder.open(name, training)
    return _part(dataset, folder.open(name), config, training) if holds_out else dataset


def place(config: ConfigDict, split: str) -> tuple[Folder, str, bool]:
    """The folder `config.data.root`, what it calls `split`, and whether validation is held out of training."""
    data = config.data
    folder = find(data.root, (data.source,) if data.source != "coco" else tuple(_KINDS))
    validation = _validation_split(folder, data)
    holds_out = validation is None and data.val.annotations.startswith(UNSET)  # neither set nor switched off
    return folder, "train" if split == "train" or holds_out else validation, holds_out


def _validation_split(folder, data):
    """The split that validates, or None where there is none."""
    if data.val_split == "test" and "test" not in folder.splits:
        raise UserError(f"data.val_split is 'test', but {data.root} has only {', '.join(folder.splits)}")
    return next((name for name in (data.val_split, "test") if name in folder.splits), None)


def is_set(place: ConfigDict) -> bool:
    """Whether the paths of `data.train` or `data.val` are not the defaults. UserError where one of them is."""
    given = [not place[key].startswith(UNSET) for key in ("annotations", "images")]
    if any(given) and not all(given):
        raise UserError(f"only one of annotations ({place.annotations}) and images ({place.images}) is set beside "
                        "data.root; set both or neither")
    return all(given)


@functools.lru_cache(maxsize=4)
def find(root: str, kinds: Sequence[str] = tuple(_KINDS)) -> Folder:
    """The folder in its layout, looked for also one level below. UserError where it has none of `kinds`."""
    path = pathlib.Path(root).expanduser()
    _check(path)
    inner = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(("_", "."))] \
        if path.is_dir() else []
    for place in (path, *(inner if len(inner) == 1 else [])):
        for kind in kinds:
            make, detect = _KINDS[kind]
            if detect(place):
                log.info("%s: taken for %s", place, kind.upper())
                return make(place)
    raise UserError(f"{root} has none of the layouts {_LAYOUTS}: it holds {_listing(path)}")


def held_out(names: Sequence[str], share: float, seed: int) -> set[str]:
    """The share of `names`, at least one, that a seed chooses, whatever their order."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    return set(by_hash[:max(1, round(share * len(names)))])


class Part:
    """Some images of a dataset; see `records.Dataset`."""

    def __init__(self, dataset: Dataset, rows: Sequence[int]):
        self._dataset, self._rows, self.categories = dataset, list(rows), dataset.categories

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: SupportsIndex) -> Record:
        return self._dataset.record(self._rows[index])

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        return self._dataset.image(self._rows[index])

    def ground_truth(self) -> dict:
        return coco_ground_truth(self)


def names_of(dataset: Dataset) -> list[str]:
    """The file name of every image."""
    return [dataset.record(i).name for i in range(len(dataset))]


def _part(dataset, everything, config, training):
    """The images of `dataset` that are held out of `everything`, or in training the others."""
    chosen = held_out(names_of(everything), config.data.holdout, config.seed)
    rows = [i for i, name in enumerate(names_of(dataset)) if (name in chosen) != training]
    if not rows:
        raise UserError(f"{config.data.root} has {len(everything)} images, too few to hold some out for validation")
    return Part(dataset, rows)


def _check(path):
    if not path.exists():
        raise UserError(f"data.root is {path}, which does not exist")
    if path.is_file() and zipfile.is_zipfile(path):
        raise UserError(f"data.root is {path}, a zip file; unpack it (unzip {path} -d {path.with_suffix('')}) and give "
                        "that folder")
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"data.root is {path}, a file; give a folder, or a data.yaml of YOLO's")


def _listing(path):
    names = [entry.name + "/" * entry.is_dir() for entry in sorted(os.scandir(path), key=lambda e: e.name)]
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8) or "nothing"
