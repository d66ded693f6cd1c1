"""Any folder that `layouts` knows -> COCO's layout, with splits where there are none."""
import json
import os
import pathlib
from collections.abc import Sequence

from htd_jax.data import layouts
from htd_jax.data.records import Dataset, coco_ground_truth
from htd_jax.errors import UserError, writing_to

Places = dict[str, tuple[pathlib.Path, pathlib.Path]]


def write_coco(root: str | os.PathLike, out: str | os.PathLike, shares: dict[str, float], seed: int = 0) -> Places:
    """Writes OUT/annotations/instances_SPLIT.json for each split of a folder, and links OUT/images to its images.

    Args:
      shares: of the images that become val and test where the folder has neither, {"val": .1}; `seed` chooses them.
    Returns:
      {split: (annotation file, image folder)}.
    Raises UserError: no layout, bad data, too few images for the shares, or OUT cannot be written to.
    """
    folder, out = layouts.find(os.fspath(root)), pathlib.Path(out).expanduser()
    base = pathlib.Path(os.path.commonpath([folder.image_root(split).resolve() for split in folder.splits]))
    with writing_to(f"the folder {out}"):
        (out / "annotations").mkdir(parents=True, exist_ok=True)
        _link(out / "images", base)
    places = {}
    for split, dataset in _splits(folder, shares, seed).items():
        source = folder.image_root(split if split in folder.splits else "train").resolve()
        truth = coco_ground_truth(dataset)
        for image in truth["images"]:
            image["file_name"] = pathlib.Path(os.path.relpath(source / image["file_name"], base)).as_posix()
        path = out / "annotations" / f"instances_{split}.json"
        with writing_to(f"the file {path}"):
            path.write_text(json.dumps(truth))
        places[split] = path, out / "images"
    return places


def _splits(folder: layouts.Folder, shares: dict[str, float], seed: int) -> dict[str, Dataset]:
    """The folder's own splits, or parts of its one."""
    if set(folder.splits) != {"train"}:
        return {split: folder.open(split) for split in folder.splits}
    dataset = folder.open("train")
    names = layouts.names_of(dataset)
    chosen, left = {}, names
    for split, share in shares.items():
        chosen[split] = layouts.held_out(left, share * len(names) / max(len(left), 1), seed) if share else set()
        left = [name for name in left if name not in chosen[split]]
    if not left:
        raise UserError(f"{len(names)} images are too few for the shares {shares}: none is left to train on")
    parts = {"train": set(left)} | {split: part for split, part in chosen.items() if part}
    return {split: layouts.Part(dataset, _rows(names, part)) for split, part in parts.items()}


def _rows(names: Sequence[str], part: set[str]) -> list[int]:
    return [row for row, name in enumerate(names) if name in part]


def _link(link, target):
    if link.is_symlink() and link.resolve() == target:
        return
    if link.exists() or link.is_symlink():
        raise UserError(f"{link} exists already; give the name of a new folder")
    link.symlink_to(target, target_is_directory=True)
