"""The doctor's lines: what is fine, what is not, and what to do then."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from htd_jax import doctor, forms
from htd_jax.config import default_config

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tmp_path):
    """A configuration with a dataset of two images and two classes."""
    images = [dict(id=i, file_name=f"{i}.png", height=40, width=50) for i in (1, 2)]
    boxes = [dict(id=i, image_id=i, category_id=5, bbox=[2, 2, 20, 20], area=400, iscrowd=0) for i in (1, 2)]
    categories = [dict(id=5, name="cat"), dict(id=7, name="dog")]
    (tmp_path / "a.json").write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    for image in images:
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / image["file_name"])
    config = default_config()
    for split in (config.data.train, config.data.val):
        split.annotations, split.images = str(tmp_path / "a.json"), str(tmp_path)
    return config


def states(results):
    return [(state, what) for state, what, _ in results]


def test_every_check_gives_a_line(config):
    lines = []
    results = list(doctor.check(config, show=lines.append))
    assert len(lines) == len(results) and all(line.split()[0] in ("ok", "warn", "fail") for line in lines)
    assert not any("\n" in line for line in lines)
    expected = {("ok", "devices"), ("ok", "data, train"), ("ok", "images, val"), ("warn", "init_from")}
    assert expected <= set(states(results))


def test_versions_against_requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\n--extra-index-url x\nnumpy>=1  # why\npytest<2\nno_such_package_of_ours==1\n"
                    "numpy>99; python_version<'3'\n")
    results = list(doctor.requirements(path))
    assert states(results) == [("ok", "numpy"), ("warn", "pytest"), ("fail", "no_such_package_of_ours")]
    assert "tested with <2" in results[1][2] and "pip install 'no_such_package_of_ours==1'" in results[2][2]


def test_an_installed_package_brings_its_own_requirements(tmp_path, monkeypatch):
    listed = ["numpy>=1", 'pytest<2; extra == "dev"', "jax<99"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", {"htd_jax": listed}.get)
    assert states(doctor.requirements(tmp_path / "none.txt")) == [("ok", "numpy"), ("ok", "jax")]


@pytest.mark.parametrize("driver, build", [
    ("580.65.06", '"jax[cuda13]=='), ("591.1", '"jax[cuda13]=='), ("550.54.15", '"jax[cuda12]=='),
    ("525.60.13", '"jax[cuda12]=='), ("470.1", "too old: JAX needs 525"), ("NVIDIA-SMI has failed", "finds no driver")])
def test_the_driver_decides_the_build_for_cuda(driver, build):
    assert build in doctor.cuda_remedy(driver) and driver in doctor.cuda_remedy(driver)


def test_another_build_for_cuda_is_removed(monkeypatch):
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name == "jax-cuda13-plugin")
    assert "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt && pip" in doctor.cuda_remedy("550.54.15")
    assert "uninstall" not in doctor.cuda_remedy("580.65.06")


def test_an_overlooked_gpu_is_named(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _, (state, what, remark) = doctor.devices()
    assert (state, what) == ("warn", "accelerator") and "driver 550.54.15 takes cuda12" in remark


def test_forms_that_differ_or_do_not_run_fail_with_the_remedy(monkeypatch):
    assert states(doctor.forms()) == [("ok", "RoIAlign")]
    wrong = forms.Comparison(1.0, 2.0, 0.5, 1e-4)
    monkeypatch.setattr(forms, "compare", lambda: wrong)
    (state, _, remark), = doctor.forms()
    assert state == "fail" and "model.roi_align=products" in remark
    monkeypatch.setattr(forms, "compare", lambda: wrong._replace(difference=0.0, fits=False))
    (state, _, remark), = doctor.forms()
    assert state == "warn" and "too small for its kernels" in remark
    monkeypatch.setattr(forms, "compare", lambda: 1 / 0)
    (state, _, remark), = doctor.forms()
    assert state == "fail" and "ZeroDivisionError" in remark and "model.roi_align=products" in remark


def test_missing_data_fails_with_its_path(config):
    config.data.val.annotations = "nowhere.json"
    (state, what, remark), = doctor.data(config, "val")
    assert state == "fail" and what == "data, val" and "nowhere.json" in remark


def test_damaged_image_fails_with_its_name(config, tmp_path):
    (tmp_path / "2.png").write_bytes(b"no image")
    assert [state for state, _, remark in doctor.data(config, "train")] == ["ok", "fail"]
    assert any("2.png" in remark for _, _, remark in doctor.data(config, "train"))


def test_number_of_classes(config):
    config.model.num_classes = 80
    assert list(doctor.data(config, "train"))[-1][:2] == ("fail", "classes, train")
    config.model.num_classes = 2
    assert all(state == "ok" for state, _, _ in doctor.data(config, "train"))


@pytest.mark.parametrize("source, norm, state", [
    ("", "frozen_bn", "warn"), ("", "gn", "ok"), ("missing.pth", "gn", "fail"),
    ("hf:timm/resnet50.tv_in1k", "frozen_bn", "ok"), (__file__, "gn", "ok")])
def test_weights_to_start_from(config, source, norm, state):
    config.init_from, config.model.norm = source, norm
    assert states(doctor.start(config)) == [(state, "init_from")]


def test_no_device_is_a_failure(monkeypatch):
    def none():
        raise RuntimeError("no backend\nand a page more")

    monkeypatch.setattr("jax.devices", none)
    (state, _, remark), = doctor.devices()
    assert state == "fail" and "no backend" in remark and "\n" not in remark
    assert all(state != "fail" for state, _, _ in doctor.memory())


def test_a_report_needs_a_configuration(tmp_path):
    command = [sys.executable, "-m", "htd_jax.doctor", "--report", tmp_path / "data.html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "give --config" in done.stderr and done.stdout == ""


def test_command_line_fails_with_status_1(tmp_path):
    missing = ("--config", "configs/htd_r50.py", f"--config.data.train.images={tmp_path}/none")
    done = subprocess.run([sys.executable, "-m", "htd_jax.doctor", *missing], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "\nfail " in done.stdout and done.stderr == "", done.stderr
