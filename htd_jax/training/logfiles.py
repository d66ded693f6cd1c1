"""The files of a log, continued where a run resumes: JSON lines, and events for TensorBoard.

All is written at once by the calling thread, so that a full disk is an error and not a thread that has died.
"""
import json
import math
import pathlib
import time

import numpy as np
from PIL import Image
from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from htd_jax.errors import writing_to
from htd_jax.evaluation import run_logs

WIDEST = 1000  # pixels of a picture's longer side


class Rows:
    """A file of JSON objects, one a line, in the order of their `step`. Attribute `rows`: by step."""

    def __init__(self, path: pathlib.Path, last: int, writes: bool = True):
        """Removes the rows of steps after `last`, which are about to come again. Without `writes` it only reads."""
        self._path, self._writes = path, writes
        kept = [row for row in run_logs.rows(self._path) if row["step"] <= last]
        self.rows = {row["step"]: row for row in kept}
        if writes:
            with writing_to(f"the log {self._path}"):
                new = self._path.with_suffix(".new")
                new.write_text("".join(map(_line, kept)), encoding="utf-8")
                new.replace(self._path)

    def append(self, row: dict[str, float | int]) -> None:
        """Adds a row with its `step`; a number that is not finite becomes null, as JSON has no NaN."""
        self.rows[row["step"]] = row
        if self._writes:
            with writing_to(f"the log {self._path}"), self._path.open("a", encoding="utf-8") as file:
                file.write(_line(row))


class Board:
    """A file of events for TensorBoard, which hides those of an earlier start for steps after `start`."""

    def __init__(self, folder: pathlib.Path, start: int):
        self._folder = folder
        with writing_to(f"the log {folder}"):
            self._writer = event_file_writer.EventsWriter(str(folder / "events"))
            self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: dict[str, float | int]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with writing_to(f"the log {self._folder}"):
            self._write(Event(step=step, summary=Summary(value=scalars)))

    def pictures(self, step: int, pictures: dict[str, Image.Image]) -> None:
        """Adds pictures by their tags; a wide one is shrunk."""
        for tag, picture in pictures.items():
            picture.thumbnail((WIDEST, WIDEST))
            with writing_to(f"the log {self._folder}"):
                self._write(Event(step=step, summary=summary.image(tag, np.asarray(picture), dataformats="HWC")))

    def _write(self, event):
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()


def _line(row):
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"
