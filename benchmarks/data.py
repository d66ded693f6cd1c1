"""Images per second from files to uint8 batches, by number of workers.

Example:
  python -m benchmarks.data --annotations data/coco/annotations/instances_train2017.json --images data/coco/train2017
  python -m benchmarks.data --annotations A --images B --cores 2 --workers 0 1 2 3 --processes 2

`cpu` is the processor time that an image takes, over all threads: what the rate becomes on idle cores is
cores * 1000 / cpu. It says more than the rate where other programs run at the same time.
"""
import argparse
import functools
import os
import time

import cv2
import grain
from absl import app

from htd_jax.config import default_config
from htd_jax.data import pipeline
from htd_jax.data.coco import CocoDataset


def main():
    given = arguments()
    if given.cores:
        os.sched_setaffinity(0, range(given.cores))
    dataset = CocoDataset(given.annotations, given.images, training=True)
    config = default_config()
    config.batch_size, config.data.scale = given.batch_size, tuple(given.scale)
    cores = len(os.sched_getaffinity(0))
    print(f"{len(dataset)} images, batches of {given.batch_size} at {given.scale}, {cores} cores, "
          f"load {os.getloadavg()[0]:.1f}")
    print(f"{'workers':14} {'first batch':>12} {'images/s':>10} {'cpu ms/image':>14}")
    for workers in given.workers:
        config.data.workers = workers
        measure(f"{workers} threads", lambda: pipeline.train_batches(dataset, config), given)
    for workers in given.processes:
        measure(f"{workers} processes", functools.partial(processes, dataset, config, workers), given)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--scale", type=int, nargs=2, default=(1333, 800))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2, 3))
    parser.add_argument("--processes", type=int, nargs="*", default=(), help="the same by worker processes, to compare")
    parser.add_argument("--cores", type=int, help="use this many processor cores only")
    return parser.parse_args()


def measure(name, make, given):
    """Prints one row; the first batch, with the start-up, does not count in the rate."""
    start = time.perf_counter()
    batches = make()
    next(batches)
    first = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(given.batches):
        next(batches)
    seconds, images = time.perf_counter() - start, given.batches * given.batch_size
    cpu = (time.process_time() - cpu) / images * 1e3
    batches.close()
    cpu = f"{cpu:.2f}" if "threads" in name else "-"  # of worker processes it would have to be asked for
    print(f"{name:14} {first:10.2f} s {images / seconds:10.1f} {cpu:>14}", flush=True)


def processes(dataset, config, workers):
    """Grain's worker processes, which hand batches over through shared memory."""
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    steps = grain.MapDataset.range(10**6).map(functools.partial(_batch, dataset, config))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(options))


_plans = {}


def _batch(dataset, config, step):
    """In a worker process, which plans once."""
    if not _plans:
        cv2.setNumThreads(0)
        _plans[0] = pipeline._TrainPlan(dataset, config)
    return _plans[0].batch(int(step), slice(0, config.batch_size))


if __name__ == "__main__":
    app.run(lambda _: main(), argv=["data.py"])  # Grain's worker processes want absl's flags parsed
