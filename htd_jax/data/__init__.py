"""Datasets and the input pipeline; everything here stays on the host."""
import pkgutil

from ml_collections import ConfigDict

from htd_jax.data.records import Category, Dataset, Images, Record
from htd_jax.errors import UserError

__all__ = ["Category", "Dataset", "Images", "Record", "SOURCES", "open_dataset"]

# Called with (config, split). By name, so that a source's libraries are imported only where it is used.
SOURCES = {
    "coco": "htd_jax.data.coco:CocoDataset.from_config",
    "yolo": "htd_jax.data.layouts:open_root",
    "voc": "htd_jax.data.layouts:open_root",
    "tfds": "htd_jax.data.tfds:TfdsDataset.from_config",
    "demo": "htd_jax.data.demo:DemoDataset",
}


def open_dataset(config: ConfigDict, split: str) -> Dataset:
    """Opens the dataset of `config.data` for `split`: "train" (filtered as by the original) or "val" (every image)."""
    if split not in ("train", "val"):
        raise ValueError(f"split is 'train' or 'val', not {split!r}")
    if config.data.source not in SOURCES:
        raise UserError(f"data.source is {config.data.source!r}; it must be one of {', '.join(SOURCES)}")
    _check_on_disk(config.data)
    by_layout = config.data.source == "coco" and config.data.root
    return pkgutil.resolve_name(SOURCES["yolo" if by_layout else config.data.source])(config, split)


def _check_on_disk(data, prefix="data"):
    for key, value in data.items():
        if isinstance(value, ConfigDict):
            _check_on_disk(value, f"{prefix}.{key}")
        elif str(value).startswith("gs://"):
            raise UserError(f"{prefix}.{key} (={value}): data are read from a disk: mount the bucket with gcsfuse, and "
                            "give the path there")
