"""The notebook's demo and its part with the user's own data run as they are, in two steps.

`python` is then a program that puts simple functions in the place of losses and detection, which take minutes to
compile. Of the slow tests one takes the real ones, of a tiny detector; the other the detectors that a user gets, from
small images and in few steps.
"""
import json
import os
import pathlib
import re
import shutil
import sys

import nbclient
import nbformat
import numpy as np
import pytest
import tiny
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "htd_colab.ipynb", as_version=4)
FLAGS = {key: value for key, value in tiny.SETTINGS.items() if key != "total_steps"} | {"dtype": "float32"}
STAND_IN = f"""#!{sys.executable}
import runpy, sys
import jax.numpy as jnp
from htd_jax.models import functional

def losses(model, batch, key, config):
    value = (model.stage0.fc_cls.kernel[...] ** 2).mean() + batch["image"].astype(jnp.float32).mean()
    return value, dict(loss=value)

def detect(model, batch, config):
    box = jnp.tile(jnp.float32([10, 10, 50, 50]), (len(batch["size"]), 1, 1))
    return dict(boxes=box, scores=box[..., 0] / 20, labels=box[..., 0].astype(int) * 0, valid=box[..., 0] > 0)

functional.losses, functional.detect = losses, detect
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tags(cell):
    return cell.metadata.get("tags", [])


@pytest.fixture
def zipped(tmp_path):
    """A zip as the notebook asks for it."""
    for split in ("train", "val"):
        tiny.write_dataset(tmp_path / split, count=8)
        (tmp_path / "zip").mkdir(exist_ok=True)
        (tmp_path / split / "images").rename(tmp_path / "zip" / split)
        (tmp_path / split / "all.json").rename(tmp_path / "zip" / f"{split}.json")
    return shutil.make_archive(tmp_path / "mine", "zip", tmp_path / "zip")


@pytest.fixture
def bin_folder(tmp_path):
    """Where `python` is the stand-in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STAND_IN)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path / "bin"


def run(settings, wanted=("ci",), more=(), timeout=600):
    """The cells that have one of the tags `wanted` after a run in which `settings` replace the notebook's own.

    `more`: code of cells that follow. `timeout`: seconds that a cell may take; None for any time.
    """
    ours, cells = "\n".join(f"{name} = {value!r}" for name, value in settings.items()), []
    for cell in (cell for cell in NOTEBOOK.cells if set(wanted) & set(tags(cell))):
        cells += [cell.copy(), *[nbformat.v4.new_code_cell(ours)] * ("parameters" in tags(cell))]
    cells += map(nbformat.v4.new_code_cell, more)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=NOTEBOOK.metadata)
    nbclient.NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": ROOT}}).execute()
    return notebook.cells


def check_demo_and_own_data(zipped, folder, monkeypatch, bin_folder):
    for name, value in dict(PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(name, value)
    flags = " ".join(f"'--config.{key}={value}'" for key, value in FLAGS.items())
    cells = run(dict(RUNS=str(folder / "runs"), DEMO_STEPS=2, OWN_ZIP=zipped, OWN_STEPS=2, START="", MORE=flags))
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert len(re.findall(r"^ AP50 \d", printed, re.M)) == 2 and printed.count("/mine/val/7.png: ") == 1, printed
    shown = [output for cell in cells for output in cell.outputs if output.output_type == "display_data"]
    assert len(shown) == 1 + 1 + 3 and all({"image/png", "image/jpeg"} & output.data.keys() for output in shown)


def test_demo_and_own_data(zipped, tmp_path, monkeypatch, bin_folder):
    check_demo_and_own_data(zipped, tmp_path, monkeypatch, bin_folder)


@pytest.mark.slow
def test_demo_and_own_data_with_the_real_detector(zipped, tmp_path, monkeypatch):
    check_demo_and_own_data(zipped, tmp_path, monkeypatch, pathlib.Path(sys.executable).parent)


def from_python(image):
    """The lines that the notebook ends with, on `image`."""
    text = NOTEBOOK.cells[-1].source
    return text.partition("```python\n")[2].partition("```")[0].replace("street.jpg", str(image))


def check_score(folder):
    """Of an evaluation: AP is a share, and the report names it."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(0 <= metrics[name] <= 1 for name in ("AP", "AP50", "AR100")) and metrics["images"] > 0
    assert f"{metrics['AP']:.3f}".lstrip("0") in (folder / "report.html").read_text()


def differs(drawn, plain):
    """Whether a drawing is more than its photograph, enlarged as drawings are and kept as JPEG."""
    drawn, plain = Image.open(drawn).convert("RGB"), Image.open(plain).convert("RGB")
    plain = plain.resize(drawn.size, Image.Resampling.NEAREST)
    return (np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max(-1) > 100).mean() > .001


@pytest.mark.slow
def test_the_detectors_that_a_user_gets(zipped, tmp_path, monkeypatch):
    """All cells up to COCO, with the settings of both recipes but steps, sizes, dtype and weights to start from."""
    for name, value in dict(PATH=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                            PYTHONPATH=str(ROOT)).items():
        monkeypatch.setenv(name, value)
    scratch = "--config.model.norm=gn --config.model.frozen_stages=0 --config.dtype=float32"  # docs/own-data.md
    runs = tmp_path / "runs"
    settings = dict(RUNS=str(runs), DEMO_STEPS=60, OWN_ZIP=zipped, OWN_STEPS=30, OWN_SCALE="(128, 96)", START="",
                    MORE=scratch)
    cells = run(settings, ("ci", "slow"), [from_python(runs / "mine" / "val" / "0.png")], timeout=None)
    check_score(runs / "demo" / "eval")
    check_score(runs / "own" / "eval")
    assert "train: 8 images" in (runs / "data.html").read_text()
    for row in json.loads((runs / "found" / "detections.json").read_text()):
        assert differs(runs / "found" / row["drawn"], row["image"]) == bool(row["detections"])
    assert "image/png" in cells[-1].outputs[-1].data


def test_it_is_committed_without_outputs():
    assert all(not cell.outputs and cell.execution_count is None for cell in NOTEBOOK.cells if cell.cell_type == "code")
