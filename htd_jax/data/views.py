"""Batches as `models.detect.detect` takes them: one view of every image, or one a scale for test-time augmentation."""
import numpy as np

from htd_jax.data import images, padding, pipeline


def batches(dataset, config, batch_size, process_index=0, process_count=1):
    """Yields (index int [B], batch) until every image of the data set has come exactly once.

    Args:
      dataset: its rows are what `index` counts; -1 is a filler row.
      config: `test.scale`, or with `test.tta` `test.tta_scales`; `data.pad_to`, `data.workers`.
      batch_size: images over all processes; this process yields its part of each batch.

    `batch` is a dict of numpy arrays (`data.pipeline`), with `test.tta` a tuple of such dicts, one a scale, whose
    rows are the same images.
    """
    process = dict(process_index=process_index, process_count=process_count)
    if not config.test.tta:
        for batch in pipeline.eval_batches(dataset, config, batch_size, config.test.scale, **process):
            yield _split(batch)
        return
    scales = config.test.tta_scales
    for rows in _alike(dataset, config.data.pad_to, scales):
        part = _Rows(dataset, rows)
        each = [pipeline.eval_batches(part, config, batch_size, scale, **process) for scale in scales]
        for views in zip(*each, strict=True):
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
    """Some rows of a data set."""

    def __init__(self, dataset, rows):
        self._dataset, self._rows = dataset, rows

    def __len__(self):
        return len(self._rows)

    def record(self, i):
        return self._dataset.record(self._rows[i])

    def image(self, i):
        return self._dataset.image(self._rows[i])
