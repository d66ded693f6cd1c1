"""eval.py and predict.py as they are called: what they leave behind, and one line with status 2 for bad input.

The processes put a simple function in the place of `detect`, which would take half a minute to compile.
"""
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import synthetic_coco
from flax import nnx
from PIL import Image

from htd_jax.config import default_config
from htd_jax.convert import convert
from htd_jax.evaluation import coco
from htd_jax.models.htd import build
from htd_jax.weights import files, loading

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
from htd_jax.config import default_config
def get_config():
    config = default_config()
    config.model.update(depth=18, width=4, fpn_channels=8, fc_channels=8, ba_channels=4, ba_out_channels=8, ba_groups=2)
    config.test.scale = (96, 64)
    config.data.workers = 1
    return config
"""
STAND_IN = """
import runpy, sys
import jax, jax.numpy as jnp
from htd_jax.models import functional
def detect(model, batch, config):
    size = batch["size"] / batch["scale"][:, ::-1]
    box = jnp.concatenate([size[:, ::-1] * .25, size[:, ::-1] * .75], 1)[:, None]
    rows = jnp.ones((len(box), 1))
    return {"boxes": box, "scores": .4 * rows, "labels": rows.astype(jnp.int32), "valid": .4 * rows > config.test.score}
functional.detect = detect
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of 20 images and 3 classes, weights for it, and a configuration."""
    path = tmp_path_factory.mktemp("cli")
    synthetic_coco.write(path)
    (path / "small.py").write_text(CONFIG)
    settings = default_config().model
    settings.update(depth=18, width=4, fpn_channels=8, fc_channels=8, ba_channels=4, ba_out_channels=8, ba_groups=2,
                    num_classes=3)
    model = nnx.eval_shape(lambda: build(settings, nnx.Rngs(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), loading.tree_of(model))
    files.write(path / "w.safetensors", loading.export(zeros))
    return path


def call(program, folder, *arguments, stand_in=("-c", STAND_IN), checkpoint=None, environment=()):
    """Runs a program on the weights of `folder` and their configuration, or on a checkpoint that has one."""
    source = ["--checkpoint", checkpoint] if checkpoint else [
        "--config", folder / "small.py", "--checkpoint", folder / "w.safetensors"]
    command = [sys.executable, *stand_in, program, *source,
               f"--config.data.val.annotations={folder / 'annotations.json'}",
               f"--config.data.val.images={folder / 'images'}", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "", **dict(environment)}
    return subprocess.run([str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=120)


def test_eval_scores_every_image_and_leaves_its_files(folder, tmp_path):
    done = call("eval.py", folder, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    truth = json.loads((folder / "annotations.json").read_text())
    assert metrics["images"] == len(results) == 20
    assert {r["category_id"] for r in results} == {3} and {r["image_id"] for r in results} == set(range(100, 120))
    assert results[0]["bbox"] == [40, 30, 80, 60]  # the middle of 160 x 120
    assert coco.score(truth, results) == metrics
    assert list(metrics["per_class"]) == ["red", "green", "blue"]
    assert f"    AP {metrics['AP']:.4f}\n" in done.stdout and done.stdout.endswith("images 20\n")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "eval.py --config" in report and "20 images" in report


def test_predict_draws_what_it_can_and_names_what_it_cannot(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    for i, size in enumerate([(80, 40), (400, 300)]):
        Image.new("RGB", size, (60, 60, 60)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "broken.jpg").write_text("no image")
    done = call("predict.py", folder, tmp_path / "photos", folder / "images" / "000100.jpg",
                tmp_path / "photos" / "1.png", "--output", tmp_path / "out", "--score", ".2")
    assert done.returncode == 2
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == 4 and lines[-1].endswith("photos/1.png: 1 class 1")
    assert [line for line in done.stderr.splitlines() if "rror" in line] == [
        f"error: image file {tmp_path}/photos/broken.jpg is not an image that OpenCV or Pillow can read",
        "error: 1 of 5 images could not be read"]
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [pathlib.Path(row["image"]).name for row in rows] == ["0.png", "1.png", "000100.jpg", "1.png"]
    assert [row["drawn"] for row in rows] == [
        "0_detected.jpg", "1_detected.jpg", "000100_detected.jpg", "1_detected_2.jpg"]
    assert (rows[1]["width"], rows[1]["height"]) == (400, 300)
    assert rows[1]["detections"] == [{"label": "class 1", "label_id": 1, "score": .4, "box": [100, 75, 300, 225]}]
    drawn = np.asarray(Image.open(tmp_path / "out" / "1_detected.jpg")).astype(int)
    assert drawn.shape == (300, 400, 3)
    assert abs(drawn[225, 200] - 60).max() > 40 and abs(drawn[280, 200] - 60).max() < 20  # the box's edge, and outside


def test_score_below_the_models_own_threshold_is_reached(folder):
    shown = call("predict.py", folder, folder / "images" / "000100.jpg", "--config.test.score=.45", "--score=.35")
    assert (shown.returncode, shown.stdout.split(": ")[1]) == (0, "1 class 1\n")


def test_a_step_that_was_copied_alone_is_enough(folder, tmp_path):
    config = runpy.run_path(str(folder / "small.py"))["get_config"]()
    convert(folder / "w.safetensors", tmp_path / "run", config)
    step = (tmp_path / "run" / "checkpoints" / "0").rename(tmp_path / "300")
    done = call("predict.py", folder, folder / "images" / "000100.jpg", checkpoint=step)
    assert (done.returncode, done.stdout.split(": ")[1]) == (0, "1 class 1\n"), done.stderr
    shutil.rmtree(step / "about")
    done = call("predict.py", folder, folder / "images" / "000100.jpg", checkpoint=step)
    assert done.returncode == 2 and "or give --config" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("program, arguments, message", [
    ("eval.py", ["stray"], "unexpected argument 'stray'"),
    ("eval.py", ["--config.test.socre=1"], "test.socre"),
    ("eval.py", ["--config.test.nms=weak"], "config.test.nms is 'weak'"),
    ("eval.py", ["--config.data.val.annotations=none.json"], "annotation file none.json does not exist"),
    ("eval.py", ["--checkpoint=none.pth"], "none.pth: no such file"),
    ("eval.py", ["--config.model.width=8"], "does not fit the model"),
    ("eval.py", ["--output=eval.py"], "cannot write to the output folder eval.py"),
    ("predict.py", [], "no image is given"),
    ("predict.py", ["--score=2", "a.jpg"], "score"),
    ("predict.py", ["--checkpoint=", "a.jpg"], "--checkpoint is missing"),
])
def test_bad_input_is_one_line_and_status_2(program, arguments, message, folder):
    done = call(program, folder, *arguments, stand_in=())
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert done.stdout == ""


def test_help_has_an_example():
    for program in ("eval.py", "predict.py"):
        done = subprocess.run([sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and f"python {program} --config configs/htd_r50.py --checkpoint" in done.stdout
