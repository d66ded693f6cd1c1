"""What people type: home folders, a tuple given twice, a run's own configuration, missing flags, odd terminals."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from htd_jax import command_line, config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOW = '''
import json, sys
from htd_jax import cli
CONFIG = cli.define_config()
cli.run(lambda rest: print(json.dumps([CONFIG.value.to_dict(), rest])), "Example: python x.py --config F")
'''
R50 = ("--config", "configs/htd_r50.py")


def run(*arguments, script=("-c", SHOW), **environment):
    return subprocess.run([sys.executable, *script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env=os.environ | environment, encoding="utf-8")


def shown(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_of_a_tuple_given_twice_the_last_stays():
    config, rest = shown(run(*R50, "--config.milestones=(1, 2)", "--config.data.scale", "(64, 32)", "a.jpg",
                             "--config.milestones=(3,)", "--config.data.scale=(128, 96)", "--config.lr=1",
                             "--config.lr=2", "--config.test.tta_scales=((8, 4),)",
                             "--config.test.tta_scales=((16, 8),)",
                             "--config.data.short_range=(1, 2)", "--config.data.short_range=(3, 4)"))
    assert (config["milestones"], config["data"]["scale"], config["lr"], rest) == ([3], [128, 96], 2, ["a.jpg"])
    assert config["test"]["tta_scales"] == [[16, 8]] and config["data"]["short_range"] == [3, 4]


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["x.py", "--workdir=~/runs/x", "--config", "~/c.py", "--config.data.train.images=~/coco", "~/a.jpg",
             "b~.jpg"]
    assert command_line.normalised(given) == [
        "x.py", "--workdir=/home/me/runs/x", "--config", "/home/me/c.py", "--config.data.train.images=/home/me/coco",
        "/home/me/a.jpg", "b~.jpg"]
    config = config_lib.default_config()
    config.data.val.images, config.init_from = "~/val", "~/w.pth"
    config = config_lib.expand_home(config)
    assert (config.data.val.images, config.init_from) == ("/home/me/val", "/home/me/w.pth")


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_the_configuration_of_a_run_may_be_given(tmp_path, form):
    config = config_lib.default_config()
    config.seed, config.milestones = 7, (1, 2)
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    read, _ = shown(run(*form.format(tmp_path / "config.json").split(), "--config.lr=.5", "--config.milestones=(4,)"))
    assert (read["seed"], read["lr"], read["milestones"]) == (7, .5, [4])


def test_a_config_json_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"bogus": 1}')
    done = run("--config", str(tmp_path / "config.json"))
    assert done.returncode == 2 and "config.bogus (=1) is no known key" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_config_is_named_though_its_keys_are_given():
    done = run("--config.lr=1", "--workdir=x", script=("train.py",))
    assert done.stderr == "error: --config is missing; for example --config configs/htd_r50.py\n"
    assert done.returncode == 2


def test_a_key_given_as_a_flag_is_told_how_to_be_set():
    done = run(*R50, "--data.root=mine")
    assert done.stderr.endswith("'data.root'; keys are set as --config.data.root=VALUE\n") and done.returncode == 2
    assert "keys are set" not in run(*R50, "--bogus=1").stderr


def test_a_terminal_that_cannot_show_a_name_ends_no_program():
    script = "from htd_jax import cli; CONFIG = cli.define_config(); cli.run(lambda rest: print(rest[0] + '.'), '')"
    done = run(*R50, "hütte.jpg", script=("-c", script), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, "h?tte.jpg.\n"), done.stderr


def test_ctrl_c_is_one_line():
    script = "import time; from htd_jax import cli; cli.define_config()\n" \
             "cli.run(lambda rest: (print('ready', flush=True), time.sleep(60)), '')"
    default = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-c", script, *R50], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, preexec_fn=default)
    assert process.stdout.readline() == "ready\n"
    time.sleep(.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted\n" and process.returncode == 130


def test_no_such_device_is_one_line_that_says_what_to_install(tmp_path):
    script = "from htd_jax import cli, mesh; CONFIG = cli.define_config(); cli.run(lambda rest: mesh.make_mesh(), '')"
    done = run(*R50, script=("-c", script), JAX_PLATFORMS="cuda")
    assert done.returncode == 2 and done.stderr.startswith("error: JAX_PLATFORMS is cuda, but JAX finds no such device")
    assert 'pip install "jax[cuda13]"' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("home, words", [
    ("/proc/nowhere", "compiled programs are not kept in config.compilation_cache ~/.cache/htd_jax: "), ("", "")])
def test_no_home_folder_means_no_cache(monkeypatch, caplog, tmp_path, home, words):
    import jax

    from htd_jax import mesh
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", home or str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        mesh.keep_compiled("~/.cache/htd_jax")
        assert jax.config.jax_compilation_cache_dir == (None if words else f"{tmp_path}/.cache/htd_jax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert words in caplog.text and bool(caplog.text) == bool(words)
