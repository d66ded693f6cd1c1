"""Batches as `models.detect.detect` takes them: one view of every image, or one a scale for test-time augmentation."""
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from htd_jax.data import images, padding, pipeline
from htd_jax.data.records import Images

# A batch (`data.pipeline`), or with `test.tta` one a scale, whose rows are the same images.
Views = dict[str, np.ndarray] | tuple[dict[str, np.ndarray], ...]


def batches(dataset: Images, config: ConfigDict, batch_size: int, process_index: int = 0,
            process_count: int = 1) -> Iterator[tuple[Int[np.ndarray, " B"], Views]]:
    """Yields (rows of the dataset, batch) until every image has come exactly once; row -1 is a filler.

    Args:
      config: `test.scale`, or with `test.tta` `test.tta_scales`; `data.pad_to`, `data.workers`.
      batch_size: images over all processes; this process yields its part of each batch.
    """
    process = dict(process_index=process_index, process_count=process_count)
    if not config.test.tta:
        for batch in pipeline.eval_batches(dataset, config, batch_size, config.test.scale, **process):
            yield _split(batch)
        return
    scales = config.test.tta_scales
    for rows in _alike(dataset, config.data.pad_to, scales):
        part = _Rows(dataset, rows)
        streams = [pipeline.eval_batches(part, config, batch_size, scale, **process) for scale in scales]
        for views in zip(*streams, strict=True):
            indices, views = zip(*map(_split, views))
            if any((other != indices[0]).any() for other in indices[1:]):
                raise RuntimeError("the views of a batch show different images")
            yield np.where(indices[0] < 0, -1, np.array(rows)[indices[0]]), views


def _split(batch):
    return batch["index"], {name: value for name, value in batch.items() if name != "index"}


def _alike(dataset, pad_to, scales):
    """Rows in groups that have one padded shape at each scale, so that every scale makes the same batches of them."""
    shapes = {scale: padding.buckets(scale) for scale in scales}
    groups = {}
    for i in range(len(dataset)):
        record = dataset.record(i)
        sizes = {scale: images.resized_shape(record.height, record.width, scale) for scale in scales}
        key = tuple(padding.padded_shape([sizes[scale]], pad_to, shapes[scale]) for scale in scales)
        groups.setdefault(key, []).append(i)
    return [groups[key] for key in sorted(groups)]


class _Rows:
    """Some rows of a dataset."""

    def __init__(self, dataset, rows):
        self._dataset, self._rows = dataset, rows

    def __len__(self):
        return len(self._rows)

    def record(self, i):
        return self._dataset.record(self._rows[i])

    def image(self, i):
        return self._dataset.image(self._rows[i])
