"""Logs: honest time, rows that continue where the run resumes, events for TensorBoard."""
import io
import json
import struct

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from htd_jax.errors import UserError
from htd_jax.training.logfiles import Board, Rows
from htd_jax.training.metrics import Clock, Logbook


class Time:
    """A clock to be set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


def test_pauses_do_not_count():
    now = Time()
    clock = Clock(now)
    now.now += 3
    with clock.pause():
        now.now += 50
    now.now += 1
    assert clock.read() == 4


def test_speed_wait_and_time_left(tmp_path):
    now = Time()
    with Logbook(tmp_path, start=10, total=40, images_per_step=4, log_every=10) as logbook:
        logbook.clock = Clock(now)
        for step in range(11, 21):
            now.now += 0.5
            logbook.step(step, {"loss": 1.0, "lr": 0.1, "grad_norm": 2.0})
            with logbook.clock.pause():
                now.now += 7
        logbook.waited(2.0)
        now.now += 5
        logbook.step(30, {"loss": float("nan"), "lr": 0.1, "grad_norm": 2.0}, skipped=3)
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], first["images_per_second"], first["eta"], first["data_wait"]) == (20, 8, 10, 0)
    assert (second["images_per_second"], second["data_wait"], second["skipped"], second["loss"]) == (8, 0.4, 3, None)


def test_rows_after_the_resumed_step_go_and_what_was_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a"')
    Rows(path, last=1, writes=False)
    assert '{"step": 3, "a"' in path.read_text()
    rows = Rows(path, last=1)
    assert rows.rows.keys() == {1}
    rows.append({"step": 2, "a": 5})
    assert path.read_text() == '{"step": 1, "a": 2}\n{"step": 2, "a": 5}\n'


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot write to the log .*rows.jsonl: No such file"):
        Rows(tmp_path / "gone" / "rows.jsonl", 0)
    with pytest.raises(UserError, match="cannot write to the log .*gone"):
        Board(tmp_path / "gone", 0)


def events(path):
    """TFRecord: length, its checksum, data, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12:12 + length])
        data = data[16 + length:]


def test_events_for_tensorboard(tmp_path):
    board = Board(tmp_path, start=7)
    board.add(8, {"train/loss": 0.5, "eval/AP": 0.25})
    version, restart, scalars = events(next(tmp_path.glob("events.out.tfevents.*")))
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (8, SessionLog.START)
    assert scalars.step == 8
    assert {v.tag: v.simple_value for v in scalars.summary.value} == {"train/loss": 0.5, "eval/AP": 0.25}


def test_pictures_for_tensorboard(tmp_path):
    board = Board(tmp_path, start=0)
    board.pictures(3, {"images/a.jpg": Image.new("RGB", (2000, 50), (255, 0, 0))})
    *_, event = events(next(tmp_path.glob("events.out.tfevents.*")))
    value, = event.summary.value
    assert event.step == 3 and value.tag == "images/a.jpg" and (value.image.width, value.image.height) == (1000, 25)
    shown = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert shown.size == (1000, 25) and shown.getpixel((5, 5)) == (255, 0, 0)
