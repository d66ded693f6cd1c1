"""What needs processes of its own: signals, kills, eight devices, two hosts. With a stand-in for the detector."""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import stand_in
import tiny

from htd_jax import checkpoints

PROGRAM = stand_in.ROOT / "tests" / "stand_in.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_dataset(folder, count=20)
    return folder


def start(data, workdir, environment=None, **keys):
    command = [sys.executable, str(PROGRAM), "--config", "configs/htd_r50.py", "--workdir", str(workdir),
               *tiny.flags(data, **keys)]
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=stand_in.ROOT, env=clean | (environment or {}), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return err


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(workdir):
    return [(row["step"], row["loss"]) for row in rows(workdir)]


def wait_for_step(workdir, step, process):
    until = time.time() + 900
    while not (rows(workdir) and rows(workdir)[-1]["step"] >= step):
        assert process.poll() is None and time.time() < until, process.communicate()[1]
        time.sleep(0.01)


def devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(data, tmp_path, sent):
    process = start(data, tmp_path, total_steps=10**6, checkpoint_every=10**6)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(sent)
    assert f"stopped by {sent.name} after step" in finish(process)
    done = rows(tmp_path)[-1]["step"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(done)]
    assert f"resuming from step {done}" in finish(start(data, tmp_path, total_steps=done + 2))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, done + 3))


def test_a_second_signal_ends_at_once():
    program = ("from signal import SIGINT, raise_signal; from htd_jax.training.guards import Preemption\n"
               "with Preemption() as p:\n raise_signal(SIGINT); print(p.reached(1), p.signal, flush=True)\n"
               " raise_signal(SIGINT); print('still here')")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=stand_in.ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "True SIGINT\n", "")


def assert_kills_cost_nothing(data, tmp_path, times, total):
    keys = dict(total_steps=total, checkpoint_every=7, data__val__annotations="")
    finish(start(data, tmp_path / "whole", **keys))
    generator = random.Random(0)
    for _ in range(times):
        process, before = start(data, tmp_path / "killed", **keys), len(rows(tmp_path / "killed"))
        until = time.time() + 900
        while len(rows(tmp_path / "killed")) in (before, 0) and process.poll() is None and time.time() < until:
            time.sleep(0.01)
        time.sleep(generator.random() * 0.3)
        assert process.poll() is None  # still training
        process.kill()
        process.wait()
    finish(start(data, tmp_path / "killed", **keys))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, killed = (checkpoints.restore_params(tmp_path / name) for name in ("whole", "killed"))
    np.testing.assert_array_equal(whole["head"]["fcs"][0]["kernel"], killed["head"]["fcs"][0]["kernel"])


def test_kill_resumes_and_gives_the_same_losses(data, tmp_path):
    assert_kills_cost_nothing(data, tmp_path, times=2, total=300)


@pytest.mark.slow
def test_kill_twenty_times(data, tmp_path):
    assert_kills_cost_nothing(data, tmp_path, times=20, total=3000)


def test_eight_devices_and_one_are_the_same_run_and_read_each_other(data, tmp_path):
    one = start(data, tmp_path / "one", devices(1))
    finish(start(data, tmp_path / "eight", devices(8)))
    finish(one)
    assert [s for s, _ in losses(tmp_path / "eight")] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-5)
    kernels = [checkpoints.restore_params(tmp_path / name)["head"]["fcs"][0]["kernel"] for name in ("one", "eight")]
    np.testing.assert_allclose(*kernels, rtol=1e-5)
    one = start(data, tmp_path / "eight", devices(1), total_steps=8)
    finish(start(data, tmp_path / "one", devices(8), total_steps=8))
    finish(one)
    np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-5)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes(data, workdir, **keys):
    port = free_port()
    return [start(data, workdir, devices(2) | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                                               "JAX_PROCESS_ID": str(i)}, distributed=True, **keys) for i in range(2)]


def test_two_processes_are_the_same_run_and_leave_one_set_of_files(data, tmp_path):
    one = start(data, tmp_path / "one", total_steps=7, checkpoint_every=3)
    finish(one)
    for total in (5, 7):  # the second time both restore
        for process in two_processes(data, tmp_path / "two", total_steps=total, checkpoint_every=3):
            finish(process)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    kernels = [checkpoints.restore_params(tmp_path / name)["head"]["fcs"][0]["kernel"] for name in ("one", "two")]
    np.testing.assert_allclose(*kernels, rtol=1e-5)
    assert len(list((tmp_path / "two").glob("events.*"))) == 2  # one a start


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_ends_both_at_one_step(data, tmp_path, sent):
    both = two_processes(data, tmp_path, total_steps=10**6, checkpoint_every=10**6)
    wait_for_step(tmp_path, 3, both[0])
    both[1].send_signal(sent)
    for process in both:
        finish(process)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(rows(tmp_path)[-1]["step"])]
