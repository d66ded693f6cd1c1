"""The logs of a run: metrics.jsonl, evaluations.jsonl, TensorBoard, and a progress bar or plain lines.

Time spent compiling, evaluating and saving does not count as training.
"""
import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from PIL import Image
from tqdm import tqdm

from htd_jax import paths
from htd_jax.training.logfiles import Board, Rows

EVALUATIONS = "evaluations.jsonl"


class Clock:
    """Seconds of training: stands still inside `pause()`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._paused, self._start = now, 0.0, now()

    def read(self) -> float:
        return self._now() - self._start - self._paused

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - began


class Logbook:
    """Writes the logs of one run into its workdir. A context manager.

    Rows of metrics.jsonl: `step` (updates done), `loss` and every other loss by name, `lr`, `grad_norm`,
    `images_per_second` (over all devices, since the row before), `images_per_second_per_device`, `data_wait` (share of
    the time in which the devices waited for data), `skipped` (images that could not be read, so far), `memory` (peak
    bytes on one device, where known) and `eta` (seconds).
    """

    def __init__(self, workdir: paths.Path, start: int, total: int, images_per_step: int, log_every: int,
                 writes: bool = True):
        """Opens the files and removes rows of steps after `start`, which are about to come again.

        Args:
            start, total: step at which this process begins, and the last one.
            images_per_step: the batch over all devices.
            log_every: steps between rows; the first and the last step have one too.
            writes: False for all processes but one: nothing is written or shown.
        """
        self.clock = Clock()
        self._total, self._images, self._every, self._writes = total, images_per_step, log_every, writes
        self._waited, self._since, self._since_step = 0.0, 0.0, start
        self._rows = Rows(workdir / "metrics.jsonl", start, writes)
        self._evaluations = Rows(workdir / EVALUATIONS, start, writes)
        self._board = Board(workdir, start) if writes else None
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not (writes and sys.stderr.isatty()),
                         dynamic_ncols=True)

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *_):
        self._bar.close()

    def waited(self, seconds: float) -> None:
        """Adds time in which the devices waited for data."""
        self._waited += seconds

    def evaluated(self, step: int) -> bool:
        """Whether evaluations.jsonl has this step already."""
        return step in self._evaluations.rows

    def evaluations_since_best(self) -> tuple[int, int]:
        """`since_best` of the evaluations so far."""
        return since_best(self._evaluations.rows.values())

    def step(self, step: int, logs: dict[str, float], skipped: int = 0) -> None:
        """Takes the logs of a finished step; writes a row where one is due."""
        self._bar.update(step - self._bar.n)
        if step % self._every and step not in (1, self._total):
            return
        row = dict(step=step) | logs | self._speed(step) | dict(skipped=skipped) | _memory()
        self._rows.append(row)
        self._show(row)

    def evaluation(self, step: int, metrics: dict) -> None:
        """Writes the 12 numbers of an evaluation; `metrics` may hold more."""
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
        self._evaluations.append(dict(step=step) | numbers)
        self.say(f"step {step}: AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f}")
        self._plot(step, {f"eval/{name}": value for name, value in numbers.items()})

    def pictures(self, step: int, pictures: dict[str, Image.Image]) -> None:
        """Shows pictures on TensorBoard, each under its name."""
        if self._board:
            self._board.pictures(step, {f"images/{name}": picture for name, picture in pictures.items()})

    def say(self, line: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self._writes:
            tqdm.write(line, file=sys.stderr)

    def _speed(self, step):
        now, steps = self.clock.read(), step - self._since_step
        elapsed = max(now - self._since, 1e-9)
        rate = steps * self._images / elapsed
        speed = dict(images_per_second=rate, images_per_second_per_device=rate / jax.device_count(),
                     data_wait=min(self._waited / elapsed, 1.0), eta=(self._total - step) * elapsed / max(steps, 1))
        self._waited, self._since, self._since_step = 0.0, now, step
        return speed

    def _show(self, row):
        shown = f"loss {row['loss']:.4f}, lr {row['lr']:.2e}, {row['images_per_second']:.2f} images/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(shown)
        else:
            left = datetime.timedelta(seconds=round(row["eta"]))
            wait = f", data wait {row['data_wait']:.0%}"
            self.say(f"step {row['step']}/{self._total}: {shown}{wait}, {left} left")
        self._plot(row["step"], {f"train/{name}": value for name, value in row.items() if name != "step"})

    def _plot(self, step, values):
        if self._board:
            self._board.add(step, values)


def since_best(evaluations: Iterable[dict]) -> tuple[int, int]:
    """How many evaluations came after the first one of the best AP, and the step of that one; (0, 0) before any."""
    scores = {row["step"]: row.get("AP") or -1.0 for row in sorted(evaluations, key=lambda row: row["step"])}
    best = max(scores, key=scores.get, default=0)
    return sum(step > best for step in scores), best


def _memory():
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"memory": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}
