"""Batches on Grain: decoded, resized, flipped and padded on the host, uint8; the device normalises.

A batch (numpy, leading axis B of this process's rows):
  image   uint8 [B, H, W, 3] RGB, padded below and to the right with 0
  size    int32 [B, 2], (h, w) of the resized image
  padded  int32 [B, 2], (h, w) that `exact` padding would have had; equals (H, W) under `exact`
  scale   float32 [B, 2], (sx, sy) = new / old
  boxes   float32 [B, G, 4] x1 y1 x2 y2 in pixels of the resized image, labels int32 [B, G], valid bool [B, G]
          (training only; crowds are left out; G is one number for the dataset)
  index   int32 [B], row of the dataset; -1 is a filler row of an evaluation batch
  skipped tuple of messages, each naming an image that could not be read and was replaced (training only; not an array)
"""
import functools
from collections.abc import Iterator, Sized

import cv2
import grain
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from htd_jax.data import augment, images, padding, transforms
from htd_jax.data.records import Images
from htd_jax.errors import UserError

ENDLESS = 2**40  # steps
ORDER, DRAWS, AUGMENTATION = 0, 1, 2  # streams of random numbers
MOST_IN_A_ROW = 100  # unreadable images, after which it is not the images


Batch = dict[str, np.ndarray | tuple[str, ...]]


def train_batches(dataset: Images, config: ConfigDict, start_step: int = 0, process_index: int = 0,
                  process_count: int = 1) -> Iterator[Batch]:
    """Endless iterator over this process's rows of the batches of steps `start_step`, `start_step` + 1, ...

    The batch of step n depends on (config.seed, dataset, config.data, config.batch_size, n) alone. Process p of P has
    rows p*B/P .. (p+1)*B/P of it. The iterator has `close()`, which ends its threads.
    Raises UserError: batch_size is not divisible by process_count; nothing can be read (from the iterator).
    """
    rows = _rows_of_process(config.batch_size, process_index, process_count)
    plan = _TrainPlan(dataset, config)
    steps = grain.MapDataset.range(start_step, ENDLESS)
    return _iterate(steps.map(lambda step: plan.batch(int(step), rows)), config.data.workers)


def eval_batches(dataset: Images, config: ConfigDict, batch_size: int, scale: tuple[int, int] | None = None,
                 process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
    """Iterator over batches that hold every image exactly once, resized to `scale` (config.test.scale unless given).

    A batch holds images of one padded shape: with `pad_to` = "exact" always the image's own, as if batch_size were 1,
    with "bucket" one of two shapes, and then `padded` is the image's own. So what an image is padded to does not depend
    on its batch. A shape's last batch is filled with rows of index -1. `batch_size` is over all processes.
    """
    rows = _rows_of_process(batch_size, process_index, process_count)
    plan = _EvalPlan(dataset, config.data.pad_to, tuple(scale or config.test.scale), batch_size)
    batches = grain.MapDataset.range(len(plan.batches))
    return _iterate(batches.map(lambda number: plan.batch(int(number), rows)), config.data.workers)


def steps_per_epoch(dataset: Images, config: ConfigDict) -> int:
    """Batches in which every image occurs; each orientation's last is filled up with repeated images."""
    return sum(-(-len(group) // config.batch_size) for group in _orientation_groups(_sizes(dataset)))


class SkippedImages:
    """Counts the images that training could not read: each is named once, and more than 1 % of all stop the run."""

    def __init__(self, dataset: Sized):
        self._least = len(dataset)  # before one epoch is seen, the share is of the dataset: one of ten is no verdict
        self._named, self._seen, self.count = set(), 0, 0

    def add(self, skipped: tuple[str, ...], seen: int) -> None:
        """Takes a batch's `skipped` and its number of images; raises UserError at more than 1 %."""
        self._seen += seen
        self.count += len(skipped)
        for message in skipped:
            if message not in self._named:
                self._named.add(message)
                logging.warning("skipped in training: %s", message)
        if self.count > 0.01 * max(self._seen, self._least):
            raise UserError(f"more than 1 % of the images cannot be used ({self.count} of "
                            f"{max(self._seen, self._least)}), the last: {skipped[-1]}")


class _TrainPlan:
    """What is in the batch of every step, and its making."""

    def __init__(self, dataset, config):
        self._dataset, self._data = dataset, config.data
        self._seed, self._batch_size = config.seed, config.batch_size
        sizes = _sizes(dataset)
        self._sizes, self._groups = sizes.tolist(), _orientation_groups(sizes)
        self._next = np.empty(len(dataset), np.int64)  # row after each in its group, for unreadable images
        for group in self._groups:
            self._next[group] = np.roll(group, -1)
        self._slots = padding.slots([int((~dataset.record(i).crowd).sum()) for i in range(len(dataset))])
        self._short_range = config.data.get("short_range")
        self._shapes = padding.buckets(config.data.scale, self._short_range)
        self._steps = steps_per_epoch(dataset, config)
        self._augments = augment.is_on(self._data.augment)
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, step, rows):
        """The slice `rows` of the global batch of `step`."""
        epoch, number = divmod(step, self._steps)
        indices = self._order(epoch)[number]
        rng = np.random.default_rng((self._seed, DRAWS, step))
        scale = self._scale(rng)
        flips = rng.random(len(indices)) < self._data.flip
        sizes = [images.resized_shape(*self._sizes[i], scale) for i in indices]
        shape, padded = padding.padded_shape(sizes, self._data.pad_to, self._shapes), padding.exact_shape(sizes)
        if self._augments:  # one shape for each orientation, whatever is drawn
            shape = padded = padding.padded_shape(sizes, "bucket", self._shapes)
        batch = _empty_batch(rows.stop - rows.start, shape)
        batch["padded"][:] = padded
        chosen = zip(range(rows.start, rows.stop), indices[rows].tolist(), flips[rows].tolist())
        filled = [self._fill(batch, k, index, flip, scale, np.random.default_rng((self._seed, AUGMENTATION, step, row)))
                  for k, (row, index, flip) in enumerate(chosen)]
        skipped = tuple(message for _, _, failed in filled for message in failed)
        return {**batch, **self._ground_truth(batch, filled), "skipped": skipped}

    def _scale(self, rng):
        """(long, short) of a step, the same in every process."""
        if self._short_range is None:
            return tuple(self._data.scale)
        lo, hi = self._short_range
        return self._data.scale[0], int(rng.integers(lo, hi, endpoint=True))

    def _epoch_order(self, epoch):
        """int [steps, batch_size], the images of every batch of an epoch."""
        rng = np.random.default_rng((self._seed, ORDER, epoch))
        batches = []
        for group in self._groups:
            count = padding.round_up(len(group), self._batch_size)
            batches.append(np.resize(rng.permutation(group), count).reshape(-1, self._batch_size))
        return rng.permutation(np.concatenate(batches))

    def _fill(self, batch, k, index, flip, scale, rng):
        """Writes row k of a batch; returns its record, whether flipped, and messages of what could not be read."""
        index, image, failed = self._first_readable(index)
        record = self._dataset.record(index)
        size = self._fitting_size(index, scale, batch["padded"][k])
        if self._augments:
            image, record = augment.augment(image, record, self._data.augment, scale, batch["image"].shape[1:3], rng)
            size = image.shape[:2]
        _put(batch, k, index, record, image, size, flip)
        return record, flip, failed

    def _first_readable(self, index):
        """Row `index` or else the next of its orientation that can be read, its image, and messages of the others."""
        start, failed = index, []
        while len(failed) < MOST_IN_A_ROW and not (failed and index == start):
            try:
                return index, self._dataset.image(index), failed
            except UserError as error:
                failed.append(str(error))
                index = int(self._next[index])
        raise UserError(f"{len(failed)} images in a row cannot be used, the first: {failed[0]}")

    def _fitting_size(self, index, scale, padded):
        """As resized to `scale`, or less where an image in place of another exceeds the padded size agreed on."""
        size = images.resized_shape(*self._sizes[index], scale)
        s = min(1.0, padded[0] / size[0], padded[1] / size[1])
        return tuple(max(1, int(side * s)) for side in size)

    def _ground_truth(self, batch, filled):
        rows = []
        for k, (record, flip, _) in enumerate(filled):
            kept = ~record.crowd
            boxes = transforms.transform_boxes(record.boxes[kept], batch["scale"][k], batch["size"][k], flip)
            rows.append((boxes, record.labels[kept], np.ones(len(boxes), bool)))
        padded = [np.stack([padding.pad_rows(array, self._slots) for array in arrays]) for arrays in zip(*rows)]
        return dict(zip(("boxes", "labels", "valid"), padded))


class _EvalPlan:
    """Which images each evaluation batch holds, and its making."""

    def __init__(self, dataset, pad_to, scale, batch_size):
        self._dataset, self._batch_size = dataset, batch_size
        shapes = padding.buckets(scale)
        self._sizes = [images.resized_shape(*size, scale) for size in _sizes(dataset).tolist()]
        by_shape = {}
        for index, size in enumerate(self._sizes):
            by_shape.setdefault(padding.padded_shape([size], pad_to, shapes), []).append(index)
        self.batches = [(shape, members[i : i + batch_size])
                        for shape, members in sorted(by_shape.items()) for i in range(0, len(members), batch_size)]

    def batch(self, number, rows):
        """The slice `rows` of batch `number`."""
        shape, members = self.batches[number]
        batch = _empty_batch(rows.stop - rows.start, shape)
        for k, index in enumerate(members[rows]):
            _put(batch, k, index, self._dataset.record(index), self._dataset.image(index), self._sizes[index])
            batch["padded"][k] = padding.exact_shape([self._sizes[index]])
        return batch


def _empty_batch(count, shape):
    """Nothing but filler rows: black images without padding."""
    return dict(
        image=np.zeros((count, *shape, 3), np.uint8),
        size=np.full((count, 2), shape, np.int32),
        padded=np.full((count, 2), shape, np.int32),
        scale=np.ones((count, 2), np.float32),
        index=np.full(count, -1, np.int32),
    )


def _put(batch, k, index, record, image, size, flip=False):
    """Writes into row k of a batch all that training and evaluation batches share."""
    height, width = size
    resized = images.resize(image, size)
    batch["image"][k, :height, :width] = cv2.flip(resized, 1) if flip else resized
    batch["size"][k] = size
    batch["scale"][k] = width / record.width, height / record.height
    batch["index"][k] = index


def _iterate(batches, workers):
    """`workers` threads make a batch each: OpenCV releases the interpreter lock, and its own threads are off."""
    cv2.setNumThreads(0)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1 if workers else 0)
    return iter(batches.to_iter_dataset(options))


def _rows_of_process(batch_size, process_index, process_count):
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} images cannot be shared by {process_count} processes: "
                        "make the batch size a multiple of them")
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _sizes(dataset):
    """int [n, 2], (height, width) of every image."""
    return np.array([(r.height, r.width) for r in map(dataset.record, range(len(dataset)))], np.int64).reshape(-1, 2)


def _orientation_groups(sizes):
    """Rows with w > h, and all others, without an empty group."""
    landscape = sizes[:, 1] > sizes[:, 0]
    return [group for group in (np.flatnonzero(landscape), np.flatnonzero(~landscape)) if len(group)]
