"""Runs that go on and on: memory and open files stay as they are, nothing is compiled again, resuming costs nothing."""
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
import stand_in
import tiny

from htd_jax.training import loop

# A run in this process, watched: lines of {step, files, kilobytes, compilations}.
WATCHED = """
import json, os, resource, sys
sys.path[:0] = [{tests!r}, {root!r}]
import jax, pathlib, stand_in, tiny
from htd_jax.models import functional
from htd_jax.training import loop, metrics
if {light}:
    functional.functions = stand_in.functions
compiled = [0]
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.__setitem__(0, compiled[0] + name.endswith("backend_compile_duration")))
step = metrics.Logbook.step

def watched(self, number, *arguments, **more):
    if number % {every} == 0:
        memory = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        print(json.dumps([number, len(os.listdir("/proc/self/fd")), memory, compiled[0]]), flush=True)
    return step(self, number, *arguments, **more)

metrics.Logbook.step = watched
loop.train(tiny.config(pathlib.Path({data!r}), **{keys!r}), {workdir!r})
"""


def watch(tmp_path, every, light=True, **keys):
    """[(step, open files, kilobytes, compilations)] of a run."""
    tests, root = stand_in.ROOT / "tests", stand_in.ROOT
    program = WATCHED.format(tests=str(tests), root=str(root), light=light, every=every, data=str(tmp_path / "data"),
                             keys=keys, workdir=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=3000, cwd=root,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def check_steady(seen, megabytes):
    """After the first quarter, which compiles and fills caches and pools."""
    later = seen[len(seen) // 4:]
    assert len({compilations for *_, compilations in later}) == 1, seen
    first, last = (min(files for _, files, *_ in part) for part in (later[:len(later) // 2], later[len(later) // 2:]))
    assert last <= first, seen  # the least, for a checkpoint that is being written has files open too
    assert later[-1][2] - later[0][2] < megabytes * 1024, seen


@pytest.mark.slow
@pytest.mark.parametrize("light, steps, megabytes", [(True, 20_000, 30), (False, 2000, 100)])
def test_memory_files_and_compilations_are_steady(tmp_path, light, steps, megabytes):
    tiny.write_dataset(tmp_path / "data", count=24)
    seen = watch(tmp_path, steps // 20, light, total_steps=steps, log_every=10, checkpoint_every=steps // 10,
                 data__flip=.5)
    assert len(seen) == 20
    check_steady(seen, megabytes)


def test_a_short_run_is_steady(tmp_path):
    tiny.write_dataset(tmp_path / "data", count=24)
    check_steady(watch(tmp_path, 20, total_steps=400, log_every=10, checkpoint_every=100), 30)


def resumed(tmp_path, times):
    """Seconds of each start of one run that goes on for two steps at a time, and its rows."""
    tiny.write_dataset(tmp_path / "data", count=12)
    seconds = []
    for n in range(1, times + 1):
        began = time.perf_counter()
        loop.train(tiny.config(tmp_path / "data", total_steps=2 * n, keep_checkpoints=2, data__val__annotations="",
                               milestones=(10**5,), total_epochs=10**6), tmp_path / "run")
        seconds.append(time.perf_counter() - began)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return seconds, [json.loads(line) for line in lines]


@pytest.mark.parametrize("times", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_resuming_again_and_again(tmp_path, monkeypatch, times):
    """Every step is logged once, checkpoints do not pile up, and the last start takes as long as the first ones."""
    monkeypatch.setattr(loop.functional, "functions", stand_in.functions)
    before = len(os.listdir("/proc/self/fd"))
    seconds, rows = resumed(tmp_path, times)
    assert [row["step"] for row in rows] == list(range(1, 2 * times + 1))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    half = len(seconds) // 2
    assert min(seconds[half:]) < 3 * min(seconds[1:half]) + .5
    whole = tmp_path / "whole"
    loop.train(tiny.config(tmp_path / "data", total_steps=2 * times, data__val__annotations="", milestones=(10**5,),
                           total_epochs=10**6), whole)
    lines = (pathlib.Path(whole) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [row["loss"] for row in rows]
