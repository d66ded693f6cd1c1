"""The command line of train.py: overrides, and one line with status 2 for everything that is wrong with it."""
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOW = '''
import json, sys
from htd_jax import cli
CONFIG = cli.define_config()
cli.run(lambda rest: print(json.dumps([CONFIG.value.to_dict(), rest])), "Example: python x.py --config F")
'''


def run(*arguments, script=("-c", SHOW)):
    return subprocess.run([sys.executable, *script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_overrides_reach_the_config():
    done = run("--config", "configs/htd_r50.py", "--config.data.scale=(512, 320)", "--config.total_steps=20",
               "--config.lr=.002", "--config.model.num_classes=3", "--config.data.short_range=(400, 1400)",
               "--config.test.tta", "--config.test.tta_scales=((64, 32),)", "--config.ema=0", "a.jpg")
    assert done.returncode == 0, done.stderr
    config, rest = json.loads(done.stdout)
    assert config["data"]["scale"] == [512, 320] and config["data"]["short_range"] == [400, 1400]
    assert (config["total_steps"], config["lr"], config["model"]["num_classes"]) == (20, .002, 3)
    assert config["test"]["tta"] is True and config["test"]["tta_scales"] == [[64, 32]] and rest == ["a.jpg"]


@pytest.mark.parametrize("argument, words", [
    ("--config.bogus=1", "--config.bogus=1"),
    ("--config.model.dpth=50", "did you mean config.model.depth"),
    ("--config.model.depth.x=3", "--config.model.depth.x=3"),
    ("--config.lr=abc", "abc"),
    ("--config.total_steps=1.5", "1.5"),
    ("--config.data.scale=12", "(12,)"),
    ("--config.data.scale=(1, a", "(1, a"),
    ("--config.dtype=5", "config.dtype is '5'"),
    ("--config.seed=-1", "config.seed is -1"),
    ("--config.test.tta=7", "'7'"),
    ("--nope=1", "nope"),
    ("stray", "'stray'"),
])
def test_bad_argument_is_one_line_and_status_2(argument, words):
    done = run("--config", "configs/htd_r50.py", "--workdir", "/nowhere", argument, script=("train.py",))
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize("text, words", [
    (None, "No such file"), ("def get_config(): return 1 / 0", "ZeroDivisionError"), ("x = 3", "get_config"),
    ("def get_config(:", "SyntaxError")])
def test_bad_config_file_is_one_line_and_status_2(tmp_path, text, words):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    done = run("--config", str(path), "--workdir", "x", script=("train.py",))
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_missing_flags():
    assert "--config is missing" in run(script=("train.py",)).stderr
    for program in ("eval.py", "predict.py"):
        assert "error: --checkpoint is missing; for example" in run("a.jpg", script=(program,)).stderr
        assert "--config is missing" in run("--checkpoint", "requirements.txt", script=(program,)).stderr
    assert "--workdir is missing" in run("--config", "configs/htd_r50.py", script=("train.py",)).stderr


def test_help_has_an_example():
    done = run("--help", script=("train.py",))
    assert done.returncode == 0 and "python train.py --config configs/htd_r50.py --workdir" in done.stdout
