"""Detections of every image of a dataset, over all devices and hosts, then their score and files.

Each host detects its own part of every batch on its own devices; only finished detections are exchanged.
"""
import collections
import contextlib
import itertools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int32
from ml_collections import ConfigDict
from tqdm import tqdm

from htd_jax import compiler, mesh as mesh_lib, paths
from htd_jax.data import Dataset, detection_batches
from htd_jax.errors import writing_to
from htd_jax.evaluation import coco, drawing, report

FIELDS = ("boxes", "scores", "labels", "valid")
log = logging.getLogger(__name__)
_LINE_EVERY = 30  # seconds between lines of progress where there is no terminal
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left\n"


def compile_detect(detect: Callable, mesh: Mesh | None = None) -> Callable:
    """Compiles `Functions.detect`, once for each shape of batch.

    Returns:
      (states, batch of numpy arrays) -> detections, asynchronous: arrays that are ready later. Under a mesh the rows
      are split over this host's devices, which each hold a copy of the states: hosts evaluate different images and
      need not agree on shapes.
    """
    options = compiler.detect_options(mesh_lib.platform(mesh))
    if mesh is None:
        return jax.jit(detect, compiler_options=options)
    everywhere, rows = mesh_lib.replicated(mesh.local_mesh), mesh_lib.split(mesh.local_mesh)
    compiled = jax.jit(mesh_lib.under(mesh.local_mesh, detect), in_shardings=(everywhere, rows), out_shardings=rows,
                       compiler_options=options)
    return lambda states, batch: compiled(states, jax.device_put(batch, rows))


def evaluate(detect_fn: Callable, dataset: Dataset, config: ConfigDict, output: str | os.PathLike | None = None,
             mesh: Mesh | None = None, labels: Int32[np.ndarray, " K"] | None = None,
             run: str | os.PathLike | None = None, watch: Callable | None = None) -> dict:
    """Runs a detector over every image of a dataset and scores its detections.

    Args:
      detect_fn: batch (numpy) -> detections; `compile_detect` with its first argument bound is one.
      config: `test` and `data` are read here.
      output: folder for metrics.json, detections.json, detections.png and report.html, written by process 0.
      mesh: what `detect_fn` spreads a batch over, `config.test.batch_size` images a device; None for one device.
      labels: the dataset's label of each class of the detector, -1 where it has none; None where they are the same.
      run: the workdir of the training, whose curves report.html shows.
      watch: called on process 0 with what `collect` returned.
    Returns:
      What `coco.metrics` gives, the same on all hosts.
    Raises UserError: an image cannot be read, detections are not finite, or `output` cannot be written to.
    """
    folder = None if output is None else make_folder(output)
    detections = collect(detect_fn, dataset, config, 1 if mesh is None else mesh.local_mesh.size, labels)
    metrics = None
    if jax.process_index() == 0:
        results, evaluation, metrics = _score(detections, dataset)
        if folder is not None:
            _write(folder, metrics, results, dataset, detections)
            with writing_to_folder(folder):
                report.write(folder / "report.html", metrics, evaluation, dataset, config, shlex.join(sys.argv), run)
        if watch is not None:
            watch(detections)
    return _broadcast(metrics)


def collect(detect_fn: Callable, dataset: Dataset, config: ConfigDict,
            local_devices: int = 1, labels: Int32[np.ndarray, " K"] | None = None) -> list[dict[str, np.ndarray]]:
    """The detections of every row of `dataset`, best first, on every host. `labels` as in `evaluate`.

    Returns:
      `boxes` float32 [n, 4] x1 y1 x2 y2 in pixels of the original, `scores` float32 [n], `labels` int32 [n], `valid`
      bool [n] (all true).
    """
    hosts = jax.process_count()
    count = config.test.batch_size * local_devices * hosts
    batches = detection_batches.batches(dataset, config, count, jax.process_index(), hosts)
    done = list(_fetched(detect_fn, batches, len(dataset)))
    if not done:
        return []
    index = np.concatenate([index for index, _ in done])
    found = {name: np.concatenate([detections[name] for _, detections in done]) for name in FIELDS}
    if hosts > 1:
        index, found = _exchange(index, found)
    if labels is not None:
        found["labels"] = np.append(labels, -1)[np.minimum(found["labels"], len(labels))]
    found["valid"] = found["valid"] & _known(found, len(dataset.categories))
    return _by_row(index, found, len(dataset))


def _known(found, classes):
    """Mask of labels that the dataset has; a model may have been given more classes than there are."""
    known = (found["labels"] >= 0) & (found["labels"] < classes)
    if dropped := int((found["valid"] & ~known).sum()):
        log.warning("%d detections are of classes that the dataset does not have (it has %d); they are left out",
                    dropped, classes)
    return known


def make_folder(path: str | os.PathLike) -> paths.Path:
    """The output folder, created where it is missing; UserError where it cannot be (before any work is lost)."""
    with writing_to_folder(path):
        folder = paths.of(path)
        paths.make_folder(folder)
    return folder


def writing_to_folder(path: str | os.PathLike) -> contextlib.AbstractContextManager:
    """A context in which an OSError becomes a UserError that names the output folder."""
    return writing_to(f"the output folder {path}")


def _fetched(detect_fn, batches, total):
    """Yields (index, detections) as numpy, one batch late: the device works on the next while the host waits."""
    with _progress(total) as progress:
        def fetch(index, detections):
            fetched = jax.device_get({name: detections[name] for name in FIELDS})
            progress.update(int((index >= 0).sum()) * jax.process_count())
            return index, fetched

        pending = collections.deque()
        for index, batch in batches:
            pending.append((index, detect_fn(batch)))
            if len(pending) > 1:
                yield fetch(*pending.popleft())
        yield from itertools.starmap(fetch, pending)


def _exchange(index, found):
    """All hosts' detections, on every host. Each has as many rows as the others, fillers included."""
    index, found = multihost_utils.process_allgather((index, found))  # leading axis: host
    return index.reshape(-1), {name: value.reshape(-1, *value.shape[2:]) for name, value in found.items()}


def _by_row(index, found, total):
    """Detections in the order of the dataset, having checked that every image came exactly once."""
    slots = np.flatnonzero(index >= 0)
    _check_count(len(slots), total)
    _check_count(len(np.unique(index[slots])), total)
    rows = [None] * total
    for slot in slots:
        valid = found["valid"][slot]
        rows[index[slot]] = {name: found[name][slot][valid] for name in FIELDS}
    return rows


def _check_count(count, total):
    if count != total:
        raise RuntimeError(f"{count} of {total} images were evaluated: the numbers would not be comparable")


def _score(detections, dataset):
    """COCO results, their evaluation and its metrics."""
    ids = [category.id for category in dataset.categories]
    results = [result for i, found in enumerate(detections)
               for result in coco.to_results(dataset.record(i).image_id, found, ids)]
    truth = dataset.ground_truth()
    evaluation = coco.evaluation(truth, results)
    metrics = coco.metrics(evaluation, truth["categories"])
    _check_count(metrics["images"], len(dataset))
    return results, evaluation, metrics


def _broadcast(metrics):
    """Process 0's metrics, on every host."""
    if jax.process_count() == 1:
        return metrics
    text = json.dumps(metrics).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text.ljust(length)[:length], np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def _write(folder, metrics, results, dataset, detections):
    with writing_to_folder(folder):
        paths.write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        paths.write(folder / "detections.json", json.dumps(results))
        drawing.write_sheet(folder / "detections.png", dataset, detections)


def _progress(total):
    """A bar on a terminal, else a line every half minute; on process 0 only."""
    lines = {} if sys.stderr.isatty() else dict(delay=_LINE_EVERY, mininterval=_LINE_EVERY, bar_format=_LINE)
    return tqdm(total=total, unit=" images", desc="evaluate", disable=jax.process_index() > 0, **lines)
