"""Whatever happens to a run while it trains, it says so, ends, and the same command goes on where it was.

With the detector of `stand_in`, which compiles at once: none of this is about the detector.
"""
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import stand_in
import test_training_processes as processes
import tiny
from test_training_processes import finish, losses, rows, start, wait_for_step

from htd_jax.errors import UserError
from htd_jax.training import loop, prefetch

FOREVER = 10**6  # steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_dataset(folder, count=20)
    return folder


def fails(process, *words, seconds=120):
    """The process ends by itself with one line of error on stderr."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 2, err
    line = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(line) == 1 and "Traceback" not in err, err
    for word in words:
        assert word in line[0], line[0]
    return line[0]


def kill(process):
    process.kill()
    process.communicate()


# ---- two runs on one workdir

def test_a_second_run_on_a_workdir_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.functional, "functions", stand_in.functions)
    folder, run = tmp_path / "data", tmp_path / "run"
    tiny.write_dataset(folder)
    loop.train(tiny.config(folder, total_steps=2), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with loop.guards.only_run(run), pytest.raises(UserError, match="another run is training in the workdir .*run"):
        loop.train(tiny.config(folder, total_steps=4), run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    loop.train(tiny.config(folder, total_steps=4), run)
    assert rows(run)[-1]["step"] == 4


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_is_no_hindrance(data, tmp_path):
    first = start(data, tmp_path / "run", total_steps=FOREVER, checkpoint_every=5)
    wait_for_step(tmp_path / "run", 6, first)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    fails(start(data, tmp_path / "link", total_steps=10), "another run")
    assert first.poll() is None
    kill(first)
    done = rows(tmp_path / "run")[-1]["step"]
    finish(start(data, tmp_path / "run", total_steps=done + 2))


# ---- kills

# Runs a program that kills itself at the third call of a function, named by module and attribute.
KILLED = """
import sys, os, runpy
sys.path[:0] = [{tests!r}, {root!r}]
import stand_in
from htd_jax.models import functional
from htd_jax.training import logfiles, loop
from htd_jax import checkpoints, paths
functional.functions = stand_in.functions
before, count = {where}.{name}, [0]

def last(*arguments, **more):
    count[0] += 1
    if count[0] == {call}:
        os.kill(os.getpid(), 9)
    return before(*arguments, **more)

{where}.{name} = last
runpy.run_path({train!r}, run_name="__main__")
"""
PHASES = {  # the function that is about to be called, and which of its calls is the last
    "logs are rewritten": ("paths.pathlib.Path", "replace", 1),
    "a row is written": ("logfiles.Rows", "append", 20),
    "an evaluation begins": ("loop.runner", "evaluate", 3),
    "an evaluation is scored": ("loop.runner.coco", "evaluation", 3),
    "a checkpoint begins": ("checkpoints.Checkpoints", "save", 4),
    "a checkpoint ends": ("checkpoints.Checkpoints", "check", 17)}


def program(folder, text, **names):
    """The command of a program that sets something up and then is train.py."""
    path = folder / "program.py"
    path.write_text(text.format(tests=str(stand_in.ROOT / "tests"), root=str(stand_in.ROOT),
                                train=str(stand_in.ROOT / "train.py"), **names))
    return [sys.executable, str(path), "--config", "configs/htd_r50.py"]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(data, workdir, **INTERRUPTED))
    return losses(workdir)


INTERRUPTED = dict(total_steps=30, checkpoint_every=2, eval_every=5)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_kill_in_every_phase(data, tmp_path, uninterrupted, phase):
    where, name, call = PHASES[phase]
    command = program(tmp_path, KILLED, where=where, name=name, call=call)
    command += ["--workdir", str(tmp_path / "run"), *tiny.flags(data, **INTERRUPTED)]
    for _ in range(3):
        killed = subprocess.run(command, cwd=stand_in.ROOT, text=True, capture_output=True, timeout=200)
        assert killed.returncode in (-9, 0), killed.stderr
    finish(start(data, tmp_path / "run", **INTERRUPTED))
    assert losses(tmp_path / "run") == uninterrupted
    steps = [row["step"] for row in map(json.loads, (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines())]
    assert steps == [5, 10, 15, 20, 25, 30]


@pytest.mark.slow
def test_kill_while_a_checkpoint_is_written(data, tmp_path, uninterrupted):
    met = 0
    for _ in range(4):
        process = start(data, tmp_path / "run", **INTERRUPTED)
        while process.poll() is None and not any((tmp_path / "run" / "checkpoints").glob("*orbax-checkpoint-tmp*")):
            time.sleep(0.001)
        met += process.poll() is None
        kill(process)
    assert met
    finish(start(data, tmp_path / "run", **INTERRUPTED))
    assert losses(tmp_path / "run") == uninterrupted


# ---- disks

@pytest.mark.slow
def test_full_disk(data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]).returncode:
        pytest.skip("a small disk needs root and mount")
    try:
        fails(start(data, disk / "run", total_steps=FOREVER, checkpoint_every=1, keep_checkpoints=100), "write",
              str(disk))
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        done = max((row["step"] for row in rows(disk / "run")), default=0)
        finish(start(data, disk / "run", total_steps=done + 3))
        assert [row["step"] for row in rows(disk / "run")] == list(range(1, done + 4))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_workdir_that_becomes_read_only(data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)]).returncode:
        pytest.skip("a disk that becomes read-only needs root and mount")
    try:
        process = start(data, disk / "run", total_steps=200, checkpoint_every=50, log_every=50)
        wait_for_step(disk / "run", 50, process)
        kill(process)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        fails(start(data, disk / "run", total_steps=100), "cannot write", str(disk))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        finish(start(data, disk / "run", total_steps=100))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ---- data

@pytest.mark.slow
def test_images_that_vanish(tmp_path):
    folder = tmp_path / "data"
    tiny.write_dataset(folder, count=20)
    process = start(folder, tmp_path / "run", total_steps=FOREVER, checkpoint_every=5, data__val__annotations="")
    wait_for_step(tmp_path / "run", 6, process)
    for path in (folder / "images").iterdir():
        path.unlink()
    fails(process, "image", ".png")
    tiny.write_dataset(tmp_path / "again", count=20)
    (tmp_path / "again" / "images").rename(folder / "images.new")
    (folder / "images").rmdir()
    (folder / "images.new").rename(folder / "images")
    done = rows(tmp_path / "run")[-1]["step"]
    finish(start(folder, tmp_path / "run", total_steps=done + 2, data__val__annotations=""))


FAULTY = """
import sys, runpy
sys.path[:0] = [{tests!r}, {root!r}]
import stand_in
from htd_jax.data import images
from htd_jax.models import functional
functional.functions = stand_in.functions
read, count = images.read, [0]

def faulty(*arguments):
    count[0] += 1
    if count[0] > 100:
        {fault}
    return read(*arguments)

images.read = faulty
runpy.run_path({train!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault, words", [("raise RuntimeError('a bug of a reader')", "a bug of a reader"),
                                          ("raise MemoryError()", "MemoryError"), ("raise SystemExit(3)", "")])
def test_a_data_thread_that_dies_ends_the_run(data, tmp_path, fault, words):
    command = program(tmp_path, FAULTY, fault=fault)
    command += ["--workdir", str(tmp_path / "run"),
                *tiny.flags(data, total_steps=FOREVER, checkpoint_every=3, data__val__annotations="")]
    process = subprocess.run(command, cwd=stand_in.ROOT, text=True, capture_output=True, timeout=120)
    assert process.returncode != 0 and words in process.stderr
    assert any((tmp_path / "run" / "checkpoints").iterdir())


def test_a_data_thread_that_hangs_is_said(monkeypatch, caplog):
    """And waited for: a network disk may come back."""
    back = threading.Event()
    batches = (back.wait() and batch for batch in ("first",))
    monkeypatch.setattr(prefetch, "PATIENCE", .05)
    stream = prefetch.Prefetch(batches, put=str.upper)
    threading.Timer(.5, back.set).start()
    assert next(stream) == ("first", "FIRST")
    assert "no batch for" in caplog.text
    stream.close()


def test_a_run_that_is_to_end_waits_for_no_batch(monkeypatch):
    back, to_end = threading.Event(), threading.Event()
    batches = (back.wait() and batch for batch in ("first",))
    monkeypatch.setattr(prefetch, "_LEAVE", .1)
    stream = prefetch.Prefetch(batches, put=str.upper, ends=to_end.is_set)
    threading.Timer(.3, to_end.set).start()
    assert next(stream) is None
    stream.close()
    assert prefetch.hangs()
    back.set()
    until = time.monotonic() + 10
    while prefetch.hangs() and time.monotonic() < until:
        time.sleep(.01)
    assert not prefetch.hangs()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_an_image_never_comes_saves_and_ends_in_seconds(tmp_path, sent):
    folder, run, keys = tmp_path / "data", tmp_path / "run", dict(checkpoint_every=FOREVER, data__val__annotations="")
    tiny.write_dataset(folder, count=20)
    process = start(folder, run, total_steps=FOREVER, **keys)
    wait_for_step(run, 3, process)
    os.mkfifo(tmp_path / "pipe")
    (folder / "images" / "7.png").rename(tmp_path / "7.png")
    (tmp_path / "pipe").rename(folder / "images" / "7.png")  # nobody ever writes into it
    done = None
    while done != (done := rows(run)[-1]["step"]):
        time.sleep(1)
    began = time.monotonic()
    process.send_signal(sent)
    assert f"stopped by {sent.name} after step {done + 1}, whose next batch was late" in finish(process)
    assert time.monotonic() - began < 20  # on a machine that does other things too
    (tmp_path / "7.png").rename(folder / "images" / "7.png")
    finish(start(folder, run, total_steps=done + 3, **keys))
    assert [row["step"] for row in rows(run)] == list(range(1, done + 4))


# ---- hosts

@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_hosts_dies_the_other_ends_within_a_minute(data, tmp_path, victim):
    both = processes.two_processes(data, tmp_path, total_steps=FOREVER, checkpoint_every=FOREVER)
    wait_for_step(tmp_path, 3, both[0])
    os.kill(both[victim].pid, signal.SIGKILL)
    killed = time.time()
    other = both[1 - victim]
    try:
        _, err = other.communicate(timeout=90)
    finally:
        for process in both:
            process.kill()
    assert other.returncode != 0 and time.time() - killed < 60, time.time() - killed
    assert err.strip()
