"""The files of a log, continued where a run resumes: JSON lines, and events for TensorBoard.

All is written at once by the calling thread, so that a full disk is an error and not a thread that has died. A bucket
gets the whole file again at each row.
"""
import json
import math
import time

import numpy as np
from PIL import Image
from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from htd_jax import paths
from htd_jax.errors import writing_to
from htd_jax.evaluation import run_logs

WIDEST = 1000  # pixels of a picture's longer side


class Rows:
    """A file of JSON objects, one a line, in the order of their `step`. Attribute `rows`: by step."""

    def __init__(self, path: paths.Path, last: int, writes: bool = True):
        """Removes the rows of steps after `last`, which are about to come again. Without `writes` it only reads."""
        self._path, self._writes = path, writes
        kept = [row for row in run_logs.rows(self._path) if row["step"] <= last]
        self.rows = {row["step"]: row for row in kept}
        if writes:
            with writing_to(f"the log {self._path}"):
                self._write_all()

    def append(self, row: dict[str, float | int]) -> None:
        """Adds a row with its `step`; a number that is not finite becomes null, as JSON has no NaN."""
        self.rows[row["step"]] = row
        if self._writes:
            with writing_to(f"the log {self._path}"):
                self._write_last(row)

    def _write_last(self, row):
        if paths.in_bucket(self._path):
            return self._write_all()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def _write_all(self):
        paths.write(self._path, "".join(map(_line, self.rows.values())), whole=True)


class Board:
    """A file of events for TensorBoard, which hides those of an earlier start for steps after `start`.

    In a bucket another file begins after each set of pictures, so that these are written once.
    """

    def __init__(self, folder: paths.Path, start: int):
        self._folder = folder
        with writing_to(f"the log {folder}"):
            self._begin()
            self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: dict[str, float | int]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with writing_to(f"the log {self._folder}"):
            self._write(Event(step=step, summary=Summary(value=scalars)))

    def pictures(self, step: int, pictures: dict[str, Image.Image]) -> None:
        """Adds pictures by their tags; a wide one is shrunk."""
        with writing_to(f"the log {self._folder}"):
            self._write(*(Event(step=step, summary=_picture(tag, picture)) for tag, picture in pictures.items()))
            if paths.in_bucket(self._folder):
                self._begin(f".{step}")

    def _begin(self, suffix=""):
        with paths.os_errors():
            self._writer = event_file_writer.EventsWriter(str(self._folder / "events"), suffix)

    def _write(self, *events):
        for event in events:
            event.wall_time = time.time()
            self._writer.write_event(event)
        with paths.os_errors():
            self._writer.flush()


def _picture(tag, picture):
    picture.thumbnail((WIDEST, WIDEST))
    return summary.image(tag, np.asarray(picture), dataformats="HWC")


def _line(row):
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"
