"""Where a command finds its configuration: a path, the name of a recipe, or the checkpoint."""
import json
import pathlib

import pytest

from htd_jax import checkpoint_files, config as config_lib, recipes, saved_config
from htd_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
R50 = str(ROOT / "configs" / "htd_r50.py")


@pytest.fixture
def workdir(tmp_path):
    config = config_lib.default_config()
    config.test.score = .125
    (tmp_path / "run" / "checkpoints" / "7" / "state").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(config_lib.to_json(config))
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["htd_r50", "htd_r50.py", "configs/htd_r50.py"])
def test_a_recipe_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.path_of(name) == R50


def test_a_file_wins_and_what_is_unknown_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "htd_r50.py").write_text("")
    assert recipes.path_of("htd_r50.py") == "htd_r50.py"
    assert recipes.path_of("other/htd_r50.py") == "other/htd_r50.py" and recipes.path_of("htd_r5") == "htd_r5"


@pytest.mark.parametrize("given", [["--config", "htd_r50"], ["--config=htd_r50"], ["-config", "htd_r50"]])
def test_all_forms_of_the_flag(given):
    rest = ["--config.test.score=.5", "a.jpg", "--score", ".2"]
    assert recipes.complete(["x.py", *given, *rest]) == ["x.py", f"--config={R50}", *rest]
    assert recipes.complete(["x.py", *rest[:2], *given]) == ["x.py", f"--config={R50}", *rest[:2]]


@pytest.mark.parametrize("step", ["", "checkpoints", "checkpoints/7"])
def test_a_workdir_brings_its_own(workdir, step):
    checkpoint = f"{workdir}/{step}"
    program, config, given, override = recipes.complete(
        ["eval.py", "--config.test.nms=soft", "--checkpoint", checkpoint])
    assert (program, given, override) == ("eval.py", f"--checkpoint={checkpoint}", "--config.test.nms=soft")
    file, _, path = config.removeprefix("--config=").partition(":")
    assert pathlib.Path(file).samefile(saved_config.__file__)
    assert saved_config.get_config(path).test.score == .125


def test_a_step_that_was_copied_alone_brings_its_own(workdir):
    step = (workdir / "checkpoints" / "7").rename(workdir.parent / "300")
    config = config_lib.default_config()
    config.test.score = .25
    (step / "about").mkdir()
    (step / "about" / "metadata").write_text(json.dumps(dict(config=config.to_dict(), categories=[])))
    _, flag, _ = recipes.complete(["predict.py", "--checkpoint", str(step)])
    assert saved_config.get_config(flag.partition(":")[2]).test.score == .25


@pytest.mark.parametrize("about, message", [
    (None, r"config.json of the checkpoint .*/300 is missing.*, or give --config"),
    ("{}", r"config.json of the checkpoint .*/300 is missing.*, or give --config"),
    ("{", "about/metadata is not what a run writes"), ('{"config": 3}', "about/metadata is not what a run writes"),
    ('{"config": {"sead": 3}}', "config.sead .*did you mean config.seed")])
def test_a_step_alone_without_a_configuration(workdir, about, message):
    step = (workdir / "checkpoints" / "7").rename(workdir.parent / "300")
    if about is not None:
        (step / "about").mkdir()
        (step / "about" / "metadata").write_text(about)
    with pytest.raises(UserError, match=message):
        saved_config.get_config(str(step))


@pytest.mark.parametrize("name", ["²", "٣", "notes", "8.tmp"])
def test_what_is_no_number_is_no_step(workdir, name):
    (workdir / "checkpoints" / name).mkdir()
    assert checkpoint_files.step_folder(workdir).name == "7"


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint"):
        saved_config.get_config(str(tmp_path))


def test_a_file_of_weights_brings_none(tmp_path):
    (tmp_path / "w.pth").write_text("")
    for checkpoint in (str(tmp_path / "w.pth"), "hf:owner/name"):
        assert recipes.complete(["x.py", f"--checkpoint={checkpoint}"]) == ["x.py", f"--checkpoint={checkpoint}"]
    with pytest.raises(UserError, match="--checkpoint nowhere: no such file or folder"):
        recipes.complete(["x.py", "--checkpoint", "nowhere"])
