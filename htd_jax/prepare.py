"""Prepares data: your own folder -> COCO JSON with splits, or a TFDS set; COCO on disk -> TFDS, without TensorFlow.

Examples:
  python -m htd_jax.prepare --root mine --json mine_coco
  python -m htd_jax.prepare --root mine --tfds ~/tensorflow_datasets --name mine
  python -m htd_jax.prepare --coco data/coco --tfds ~/tensorflow_datasets

--root is a folder in COCO's, YOLO's or VOC's layout. Where it has training images alone, the shares --val and --test of
them are split off, by their names and --seed. --json writes annotations/instances_SPLIT.json, and links images.
--coco reads data/coco/annotations/instances_{train,val}2017.json and image_info_test{,-dev}2017.json beside the folders
{train,val,test}2017, whichever are there, and writes coco/2017/1.1.0, as the stock builder does.
Sets are ArrayRecord. An interrupted run goes on when it is started again.
"""
import argparse
import hashlib
import io
import json
import os
import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from tensorflow_datasets.core import dataset_info, example_serializer, file_adapters, naming, splits as splits_lib
from tqdm import tqdm

from htd_jax import cli, paths
from htd_jax.data import coco, coco_json, coco_writer, images
from htd_jax.data.tfds import TfdsDataset
from htd_jax.errors import UserError

# Split of the set -> annotation file, image folder.
SPLITS = {
    "train": ("instances_train2017.json", "train2017"),
    "validation": ("instances_val2017.json", "val2017"),
    "test": ("image_info_test2017.json", "test2017"),
    "test_dev": ("image_info_test-dev2017.json", "test2017"),
}
TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # ours -> TFDS's
SHARD_BYTES = 256 * 2**20


class Identity(NamedTuple):
    """What a set is called; its directory is NAME[/CONFIG]/VERSION."""

    name: str
    config: str | None
    version: str

    @property
    def path(self) -> str:
        return "/".join(part for part in self if part)


STOCK = Identity("coco", "2017", "1.1.0")  # of the stock builder whose features these are


def prepare_root(root: str | os.PathLike, data_dir: str | os.PathLike, name: str = "", val: float = 0.1,
                 test: float = 0.0, seed: int = 0) -> pathlib.Path:
    """Writes a folder of any layout as a set called `name` (the folder's own by default); returns its directory.

    `val`, `test`, `seed`: as for `coco_writer.write_coco`. Its COCO files stay in the directory, in `coco`.
    """
    identity = Identity(name or _name_of(root), None, "1.0.0")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", identity.name):
        raise UserError(f"--name is {identity.name!r}; a set's name has small letters, digits and _")
    directory = pathlib.Path(data_dir).expanduser() / identity.path
    places = coco_writer.write_coco(root, directory / "coco", dict(val=val, test=test), seed)
    found = {TFDS_SPLITS[split]: place for split, place in places.items()}
    return _write_set(directory, identity, found, SHARD_BYTES)


def _name_of(root):
    name = re.sub(r"[^a-z0-9]+", "_", pathlib.Path(root).expanduser().resolve().stem.lower()).strip("_")
    return name if name[:1].isalpha() else f"set_{name}"


def prepare(source: str | os.PathLike, data_dir: str | os.PathLike, shard_bytes: int = SHARD_BYTES) -> pathlib.Path:
    """Writes the set and returns its directory; shards that an earlier, interrupted run completed are kept.

    Args:
      source: folder with `annotations` and the image folders.
      shard_bytes: size of image files that share a shard.
    Raises UserError: bad annotations or images, or the directory holds a set of other annotations.
    """
    source, directory = pathlib.Path(source), pathlib.Path(data_dir).expanduser() / STOCK.path
    found = {split: (source / "annotations" / file, source / folder)
             for split, (file, folder) in SPLITS.items() if (source / "annotations" / file).exists()}
    if not found:
        raise UserError(f"{source / 'annotations'} has none of {', '.join(file for file, _ in SPLITS.values())}")
    return _write_set(directory, STOCK, found, shard_bytes)


def _write_set(directory, identity, found, shard_bytes):
    """Writes the splits {name: (annotation file, image folder)}."""
    directory.mkdir(parents=True, exist_ok=True)
    infos, categories = [], None
    for split, (annotations, folder) in found.items():
        data = coco.CocoDataset(annotations, folder)  # checks everything but the pixels
        if categories not in (None, data.categories):
            raise UserError(f"annotation file {annotations} has other categories than the one before it")
        categories = data.categories
        infos.append(_write_split(directory, identity.name, split, annotations, folder, categories, shard_bytes))
    _write_metadata(directory, identity, infos, categories)
    for split in found:
        TfdsDataset(directory, split)  # reads every record once and leaves the index
    return directory


def _write_split(directory, name, split, annotations, folder, categories, shard_bytes):
    """Writes the missing shards of a split; returns its SplitInfo."""
    file = coco_json.read(annotations)
    by_image = {}
    for annotation in file.annotations or []:
        by_image.setdefault(annotation.image_id, []).append(annotation)
    shards = _shards(file.images, folder, shard_bytes)
    lengths = [len(shard) for shard in shards]
    _check_same_source(directory / f"prepare-{split}.json", annotations, lengths)
    template = naming.ShardedFileTemplate(
        data_dir=directory, dataset_name=name, split=split, filetype_suffix="array_record")
    label_of = {category.id: label for label, category in enumerate(categories)}
    features = _features(categories)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    serialise = lambda example: serializer.serialize_example(features.encode_example(example))
    with tqdm(total=len(file.images), desc=f"writing {split}", unit=" images", disable=None) as progress:
        for number, shard in enumerate(shards):
            path = pathlib.Path(template.sharded_filepath(shard_index=number, num_shards=len(shards)))
            if not path.exists():
                examples = (_example(image, by_image.get(image.id, []), folder, label_of) for image in shard)
                _write_shard(path, map(serialise, examples))
            progress.update(len(shard))
    size = sum(os.path.getsize(path) for path in template.sharded_filepaths(len(shards)))
    return splits_lib.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _shards(listed, folder, shard_bytes):
    """Images in the order of the file, in runs of equal length that hold about `shard_bytes` each."""
    total = sum((folder / image.file_name).stat().st_size for image in listed)
    count = min(len(listed), max(1, -(-total // shard_bytes)))
    ends = np.linspace(0, len(listed), count + 1).astype(int)
    return [listed[a:b] for a, b in zip(ends[:-1], ends[1:])]


def _check_same_source(path, annotations, shard_lengths):
    """Shards of one set must be of one source: records it, or compares it with the record of an earlier run."""
    digest = hashlib.sha256(pathlib.Path(annotations).read_bytes()).hexdigest()
    record = dict(annotations_sha256=digest, shard_lengths=shard_lengths)
    if not path.exists():
        path.write_text(json.dumps(record))
    elif json.loads(path.read_text()) != record:
        raise UserError(f"{path.parent} was begun with other annotations or images than {annotations}: "
                        "remove it, or give another --tfds")


def _write_shard(path, records):
    """Under another name until it is whole, so that an interrupted one is never taken for a shard."""
    partial = path.with_name(f"partial.{path.name}")
    file_adapters.ArrayRecordFileAdapter.write_examples(partial, enumerate(records))
    os.replace(partial, path)


def _example(image, annotations, folder, label_of):
    """One example of the stock features. What training ignores (`ignore`) becomes a crowd, to the same effect."""
    if not isinstance(image.id, int):
        raise UserError(f"image {image.file_name} has the id {image.id!r}; TFDS's are whole numbers")
    return {
        "image": io.BytesIO(_encoded(folder / image.file_name, (image.height, image.width))),
        "image/filename": image.file_name,
        "image/id": image.id,
        "objects": [{
            "id": a.id if isinstance(a.id, int) else 0,
            "area": int(a.bbox[2] * a.bbox[3] if a.area is None else a.area),
            "bbox": _normalised(a.bbox, image),
            "label": label_of[a.category_id],
            "is_crowd": bool(a.iscrowd or a.ignore),
        } for a in annotations],
    }


def _normalised(bbox, image):
    """x, y, w, h in pixels -> TFDS's shares of the image, clipped to it."""
    x, y, w, h = bbox
    x1, x2 = np.clip([x, max(x, x + w)], 0, image.width) / image.width
    y1, y2 = np.clip([y, max(y, y + h)], 0, image.height) / image.height
    return tfds.features.BBox(ymin=float(y1), xmin=float(x1), ymax=float(y2), xmax=float(x2))


def _encoded(path, size):
    """The file's bytes; encoded again only if the pixels lie otherwise than annotated, as TFDS readers ignore EXIF."""
    data = path.read_bytes()
    images.check_complete(data, path)
    try:
        stored = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        raise UserError(f"image file {path} is not an image") from None
    if stored.size == (size[1], size[0]):
        return data
    images.decode(data, path, size)  # the error that names both sizes
    buffer = io.BytesIO()
    ImageOps.exif_transpose(stored).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _features(categories):
    names = [category.name for category in categories]
    unique = len(set(names)) == len(names) and all(name.strip() for name in names)
    label = tfds.features.ClassLabel(names=names) if unique else tfds.features.ClassLabel(num_classes=len(names))
    return tfds.features.FeaturesDict({
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence({
            "id": np.int64, "area": np.int64, "bbox": tfds.features.BBoxFeature(), "label": label, "is_crowd": np.bool_,
        }),
    })


def _write_metadata(directory, identity, infos, categories):
    builder = dataset_info.DatasetIdentity(
        name=identity.name, config_name=identity.config, version=identity.version,
        data_dir=os.fspath(directory), module_name="")
    info = dataset_info.DatasetInfo(
        builder=builder, features=_features(categories), homepage="https://cocodataset.org",
        description=f"Detection: {identity.path}.",
        metadata=tfds.core.MetadataDict(categories=[category._asdict() for category in categories]),
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(splits_lib.SplitDict(infos))
    info.write_to_directory(directory)


def _run(given):
    """Does what the arguments say; each result is a line."""
    if not (given.tfds or given.json) or (given.coco and given.json):
        raise UserError("say what to write: --tfds DIR, or with --root also --json DIR")
    if not (0 <= given.val < 1 and 0 <= given.test < 1 and given.val + given.test < 1):
        raise UserError(f"--val (={given.val}) and --test (={given.test}) are shares of all images, together below 1")
    for path in (given.root, given.coco, given.json, given.tfds):
        if path and paths.in_bucket(path):
            raise UserError(f"{path}: data are read from and written to a disk: mount the bucket with gcsfuse")
    if given.coco:
        print(f"prepared {prepare(given.coco, given.tfds)}")
        return
    if given.json:
        places = coco_writer.write_coco(given.root, given.json, dict(val=given.val, test=given.test), given.seed)
        files = ", ".join(str(path) for path, _ in places.values())
        print(f"wrote {files}; train with --config.data.root={given.json}")
    if given.tfds:
        directory = prepare_root(given.root, given.tfds, given.name, given.val, given.test, given.seed)
        print(f"prepared {directory}; train with --config.data.source=tfds "
              f"--config.data.tfds.name={directory.parent.name} --config.data.tfds.dir={given.tfds}")


def main(arguments: list[str] | None = None) -> None:
    """The command; bad input is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        "python -m htd_jax.prepare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--root", help="folder in COCO's, YOLO's or VOC's layout")
    source.add_argument("--coco", help="folder with annotations/, train2017/, val2017/, test2017/")
    parser.add_argument("--json", help="with --root: folder to write COCO JSON into")
    parser.add_argument("--tfds", help="TFDS data dir, to write the set into")
    parser.add_argument("--name", default="", help="with --root: of the set; the folder's by default")
    parser.add_argument("--val", type=float, default=0.1, help="share of the images, where there are no splits")
    parser.add_argument("--test", type=float, default=0.0, help="the same")
    parser.add_argument("--seed", type=int, default=0, help="of the shares")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except UserError as error:
        sys.exit(cli.fail(error))


if __name__ == "__main__":
    main()
