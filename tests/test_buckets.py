"""Runs in a bucket, gs://: what a disk does by renaming and appending, and what goes wrong there. In an emulator."""
import functools
import importlib.util
import json
import random
import runpy
import subprocess
import sys
import time

import bucket
import numpy as np
import pytest
import stand_in
import test_cli_eval
import test_detector
import test_training_checkpoints as on_disk
import test_training_processes as processes
import tiny
from PIL import Image
from test_faults import fails, kill
from test_training_metrics import events
from test_training_processes import finish, losses, start, wait_for_step

from htd_jax import (
    checkpoints as checkpoints_lib,
    config as config_lib,
    convert,
    data as data_lib,
    paths,
    prepare,
)
from htd_jax.checkpoints import Checkpoints
from htd_jax.detector import Detector
from htd_jax.errors import UserError
from htd_jax.evaluation import run_logs
from htd_jax.models import functional
from htd_jax.training import logfiles, loop
from htd_jax.weights import loading

for package in ("gcsfs", "gcp_storage_emulator"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: the extra dev has it", allow_module_level=True)


@pytest.fixture(scope="module")
def environment():
    with bucket.emulated() as environment:
        yield environment


@pytest.fixture
def folder(environment, request):
    """A folder in the bucket, of this test alone."""
    return paths.of(f"{bucket.ROOT}/{request.node.name.replace('[', '-').replace(']', '')}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- paths

def test_a_path_is_that_of_a_bucket_or_of_a_disk(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.of("~/run") == tmp_path / "run" == paths.absolute("run")
    assert str(paths.of("gs://bucket/a/run")) == str(paths.absolute("gs://bucket/a/run/")) == "gs://bucket/a/run"
    assert str(paths.of(paths.of("gs://bucket/a")) / "b") == "gs://bucket/a/b"
    with pytest.raises(UserError, match="s3://bucket/run: paths are those of a disk, or gs://BUCKET"):
        paths.of("s3://bucket/run")


def test_a_bucket_that_is_missing_is_named(environment):
    paths.check("gs://bucket/nothing/yet")
    with pytest.raises(UserError, match="gs://nowhere/run: there is no bucket gs://nowhere"):
        paths.check("gs://nowhere/run")
    with pytest.raises(UserError, match="gs:// names no bucket"):
        paths.check("gs://")


def test_data_and_files_of_weights_are_read_from_a_disk(environment, capsys):
    config = config_lib.default_config()
    config.data.tfds.dir = "gs://bucket/tfds"
    with pytest.raises(UserError, match="data.tfds.dir .=gs://bucket/tfds.*mount the bucket"):
        data_lib.open_dataset(config, "train")
    with pytest.raises(UserError, match="gs://bucket/w.safetensors: is no run; files of weights"):
        loading.load_tensors("gs://bucket/w.safetensors")
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["--coco", "coco", "--tfds", "gs://bucket/tfds"])
    assert "error: gs://bucket/tfds: data are read from and written to a disk" in capsys.readouterr().err


PROGRAM = """
import runpy, sys
sys.modules["gcsfs"] = None  # not installed
sys.modules["jax"] = None  # and nothing has begun
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("arguments", [
    ["train.py", "--config=configs/htd_r50.py", "--workdir=gs://bucket/run"], ["eval.py", "--checkpoint=gs://bucket/run"],
    ["predict.py", "--config=configs/htd_r50.py", "--checkpoint=gs://bucket/run", "street.jpg"]])
def test_the_extra_is_asked_for_before_anything_else(arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=stand_in.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('error: gs://bucket/run: gs:// needs the extra gcs: pip install ".[gcs]"')
    assert done.stderr.count("\n") == 1


# ---- checkpoints

def test_last_and_best_are_kept(folder):
    on_disk.save(folder, {1: .1, 2: .4, 3: None, 4: .2, 5: None, 6: None}, keep=2)
    assert on_disk.steps(folder) == [2, 5, 6]
    step, state = on_disk.restore(folder)
    assert step == 6
    on_disk.assert_equal(state, on_disk.make_state(6))


def objects(folder):
    for path in folder.iterdir():
        yield from objects(path) if path.is_dir() else [path]


def largest(step):
    return max(objects(step / "state"), key=lambda path: path.stat().length)


def cut(step):
    largest(step).write_bytes(largest(step).read_bytes()[:100])


def remove(step):
    largest(step).unlink()


@pytest.mark.parametrize("damage", [cut, remove])
def test_a_damaged_step_is_set_aside(folder, damage, caplog):
    on_disk.save(folder, {4: None, 8: None})
    damage(folder / "checkpoints" / "8")
    step, state = on_disk.restore(folder)
    assert step == 4 and names(folder) == ["checkpoints", "damaged-8"]
    on_disk.assert_equal(state, on_disk.make_state(4))
    assert "8 is damaged" in caplog.text
    on_disk.save(folder, {8: None})
    assert on_disk.restore(folder)[0] == 8


def test_an_unfinished_step_is_passed_over_and_written_again(folder):
    on_disk.save(folder, {4: None, 8: None})
    for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
        (folder / "checkpoints" / "8" / name).unlink()
    cut(folder / "checkpoints" / "8")
    assert on_disk.restore(folder)[0] == 4
    assert names(folder / "checkpoints") == ["4"]  # nothing is left to remove once another is saved
    np.testing.assert_array_equal(checkpoints_lib.restore_params(folder)["neck"]["convs"][0]["kernel"],
                                  on_disk.make_state(4)["params"]["neck"]["convs"][0]["kernel"])
    on_disk.save(folder, {8: None})
    assert on_disk.restore(folder)[0] == 8


def test_a_run_that_was_copied_from_a_disk_is_taken(folder, tmp_path):
    on_disk.save(tmp_path, {4: .2, 8: None})
    for path in tmp_path.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(tmp_path)).write_bytes(path.read_bytes())
    on_disk.assert_equal(checkpoints_lib.restore_params(folder), checkpoints_lib.restore_params(tmp_path))
    assert on_disk.restore(folder)[0] == 8
    on_disk.save(folder, {12: None, 16: None}, keep=1)
    assert on_disk.steps(folder) == [4, 16]


def test_a_step_that_cannot_be_read_stays(folder, monkeypatch):
    def fail(*_):
        raise OSError("Forbidden: no storage.objects.get access")

    on_disk.save(folder, {4: None, 8: None})
    monkeypatch.setattr(Checkpoints, "_read", fail)
    with pytest.raises(UserError, match="8 cannot be read, though it may be whole.*Forbidden"):
        on_disk.restore(folder)
    assert on_disk.steps(folder) == [4, 8]


# ---- logs

def test_logs_are_continued(folder):
    for last, added in ((0, (1, 2, 3)), (2, (3, 4))):
        rows = logfiles.Rows(folder / "metrics.jsonl", last)
        for step in added:
            rows.append(dict(step=step, loss=step + last))
    assert run_logs.rows(folder / "metrics.jsonl") == [
        dict(step=1, loss=1), dict(step=2, loss=2), dict(step=3, loss=5), dict(step=4, loss=6)]


def test_events_are_whole_after_each_row(folder):
    board = logfiles.Board(folder, 0)
    board.add(1, dict(loss=1.0))
    board.pictures(1, dict(picture=Image.new("RGB", (20, 10))))
    board.add(2, dict(loss=2.0))
    read = [(event.step, *(value.tag for value in event.summary.value))
            for name in names(folder) for event in events(folder / name)]
    assert read == [(0,), (1,), (1, "loss"), (1, "picture"), (0,), (2, "loss")]  # each file begins with its version


def test_a_log_that_cannot_be_written_is_one_line(folder, monkeypatch):
    rows = logfiles.Rows(folder / "metrics.jsonl", 0)

    def fail(*_):
        raise RuntimeError("quota exceeded")  # none of OSError's kinds

    monkeypatch.setattr(type(folder), "write_bytes", fail)
    with pytest.raises(UserError, match="cannot write to the log gs://bucket/.*quota exceeded"):
        rows.append(dict(step=1))


# ---- whole runs

def test_a_run_leaves_the_same_files_as_on_a_disk(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loop.functional, "functions", stand_in.functions)
    tiny.write_dataset(tmp_path / "data")
    settings = dict(total_steps=4, checkpoint_every=2, eval_every=2)
    on_the_disk = loop.train(tiny.config(tmp_path / "data", **settings), tmp_path / "run")
    assert loop.train(tiny.config(tmp_path / "data", **settings), str(folder)) == on_the_disk
    assert "gs://bucket/test_a_run_leaves_the_same_files_as_on_a_disk cannot be locked" in caplog.text
    without_events = lambda path: [name for name in names(path) if not name.startswith("events")]
    for inner in ("", "checkpoints", "eval"):
        assert without_events(folder / inner) == without_events(tmp_path / "run" / inner)
    for name in ("config.json", "categories.json", "evaluations.jsonl", "eval/metrics.json", "eval/detections.json"):
        assert (folder / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert losses(folder) == losses(tmp_path / "run")
    assert loop.train(tiny.config(tmp_path / "data", **settings), str(folder)) == json.loads(
        (folder / "evaluations.jsonl").read_text().splitlines()[-1])  # finished


def test_a_detector_from_a_bucket(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(functional, "detect", test_detector.stand_in)
    weights = test_detector.write_weights(tmp_path / "small.safetensors", test_detector.small())
    convert.convert(weights, str(folder), test_detector.small())
    pixels = test_detector.pixels()
    found, expected = (Detector.from_checkpoint(source).predict(pixels)
                       for source in (str(folder), (test_detector.small(), weights)))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


commands = test_cli_eval.folder


def test_eval_and_predict_take_a_bucket(environment, folder, commands, tmp_path):
    truth = json.loads((commands / "annotations.json").read_text())
    for label, category in enumerate(truth["categories"]):
        category["name"] = f"class {label}"  # as `convert` calls it
    (tmp_path / "renamed.json").write_text(json.dumps(truth))
    convert.convert(commands / "w.safetensors", str(folder), runpy.run_path(str(commands / "small.py"))["get_config"]())
    call = functools.partial(test_cli_eval.call, checkpoint=folder, environment=environment)
    done = call("eval.py", commands, f"--config.data.val.annotations={tmp_path / 'renamed.json'}",
                "--output", folder / "eval")
    assert done.returncode == 0, done.stderr
    assert {"metrics.json", "detections.json", "report.html"} <= set(names(folder / "eval"))
    assert json.loads((folder / "eval" / "metrics.json").read_text())["images"] == 20
    done = call("predict.py", commands, commands / "images" / "000100.jpg", "--output", folder / "found")
    assert done.returncode == 0, done.stderr
    assert names(folder / "found") == ["000100_detected.jpg", "detections.json"]


KEYS = dict(total_steps=60, checkpoint_every=7, eval_every=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_dataset(folder, count=20)
    return folder


def assert_same_run(folder, on_a_disk):
    assert losses(folder) == losses(on_a_disk)
    assert [row["step"] for row in run_logs.rows(folder / "evaluations.jsonl")] == [20, 40, 60]
    kernels = [checkpoints_lib.restore_params(run)["head"]["fcs"][0]["kernel"] for run in (folder, on_a_disk)]
    np.testing.assert_array_equal(*kernels)


@pytest.mark.slow
def test_kills_cost_nothing(environment, folder, data, tmp_path):
    finish(start(data, tmp_path / "run", **KEYS))
    generator = random.Random(0)
    for step in (3, 16, 41):
        process = start(data, folder, environment, **KEYS)
        wait_for_step(folder, step, process)
        time.sleep(generator.random() * .5)
        assert process.poll() is None
        kill(process)
    assert "resuming from step" in finish(start(data, folder, environment, **KEYS))
    assert_same_run(folder, tmp_path / "run")


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written(environment, folder, data, tmp_path):
    finish(start(data, tmp_path / "run", **KEYS))
    met = 0
    for _ in range(3):
        process = start(data, folder, environment, **KEYS)
        while process.poll() is None and not unfinished(folder / "checkpoints"):
            time.sleep(.001)
        met += process.poll() is None
        kill(process)
    assert met
    finish(start(data, folder, environment, **KEYS))
    assert_same_run(folder, tmp_path / "run")


def unfinished(checkpoints):
    """Steps whose writing has begun."""
    return checkpoints.exists() and [step for step in checkpoints.iterdir()
                                     if not (step / "commit_success.txt").exists()]


@pytest.mark.slow
def test_two_processes_share_nothing_but_the_bucket(environment, folder, data, tmp_path):
    finish(start(data, tmp_path / "run", total_steps=7, checkpoint_every=3))
    for total in (5, 7):  # the second time both restore
        for process in processes.two_processes(data, folder, total_steps=total, checkpoint_every=3):
            finish(process)
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "run"), rtol=1e-5)


@pytest.mark.slow
def test_a_bucket_that_is_missing_ends_the_run_with_one_line(environment, data):
    fails(start(data, "gs://nowhere/run", environment), "gs://nowhere/run: there is no bucket gs://nowhere")
