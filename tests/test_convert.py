"""Conversion in both directions, by the function and by the command line, with a model of a few thousand parameters."""
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from htd_jax import checkpoints
from htd_jax.config import default_config
from htd_jax.convert import convert
from htd_jax.errors import UserError
from htd_jax.models.htd import build
from htd_jax.weights import files, loading

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = dict(depth=18, width=4, fpn_channels=8, fc_channels=8, ba_channels=4, ba_out_channels=8, ba_groups=2)
CONFIG = f"""
from htd_jax.config import default_config
def get_config():
    config = default_config()
    config.model.update({SMALL!r})
    return config
"""


def config(**changes):
    result = default_config()
    result.model.update(SMALL | changes)
    return result


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(path, tensors): a file under the original's names, of a model with 80 classes and random values."""
    model, rng = nnx.eval_shape(lambda: build(config(num_classes=80).model, nnx.Rngs(0))), np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), loading.tree_of(model))
    tensors = loading.complete(loading.export(tree))
    path = tmp_path_factory.mktemp("original") / "htd.safetensors"
    files.write(path, tensors)
    return path, tensors


def assert_same(path, tensors):
    back = files.read(path)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_file_to_workdir_and_back(original, tmp_path):
    path, tensors = original
    convert(path, tmp_path / "run", config())
    assert checkpoints.load_config(tmp_path / "run").model.num_classes == 80
    assert checkpoints.load_categories(tmp_path / "run")[79] == (90, "toothbrush")
    convert(tmp_path / "run", tmp_path / "a.safetensors")
    convert(tmp_path / "run" / "checkpoints" / "0", tmp_path / "b.safetensors", config())
    assert_same(tmp_path / "a.safetensors", tensors)
    assert_same(tmp_path / "b.safetensors", tensors)


def test_workdir_holds_what_training_saves(original, tmp_path):
    """Trained and frozen parts are apart, as in a run of this configuration."""
    convert(original[0], tmp_path / "run", config())
    state = tmp_path / "run" / "checkpoints" / "0" / "state"
    tree = checkpoints.ocp.StandardCheckpointer().metadata(state).item_metadata.tree
    paths = {part: {".".join(key) for key in traverse_util.flatten_dict(tree[part])} for part in ("params", "frozen")}
    assert "backbone.layer2.0.conv1.kernel" in paths["params"] and "backbone.stem.conv1.kernel" in paths["frozen"]
    assert "backbone.layer4.0.bn1.mean" in paths["frozen"] and not paths["params"] & paths["frozen"]


def test_original_pth_to_safetensors(original, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be tested")
    state_dict = {name: torch.from_numpy(array.copy()) for name, array in original[1].items()}
    torch.save(dict(meta=dict(CLASSES=("a",)), state_dict=state_dict), tmp_path / "htd.pth")
    convert(tmp_path / "htd.pth", tmp_path / "out.safetensors", config())
    assert_same(tmp_path / "out.safetensors", original[1])


def test_backbone_out_of_another_detector(original, tmp_path, capsys):
    tensors = original[1] | {"roi_head.mask_head.conv.weight": np.ones((2, 2, 3, 3), np.float32)}
    files.write(tmp_path / "mask_rcnn.safetensors", tensors)
    with pytest.raises(UserError, match="roi_head.mask_head.conv.weight.*--backbone"):
        convert(tmp_path / "mask_rcnn.safetensors", tmp_path / "out.safetensors")
    for given in (None, config()):
        convert(tmp_path / "mask_rcnn.safetensors", tmp_path / "out.safetensors", given, backbone=True)
        assert_same(tmp_path / "out.safetensors", {n: a for n, a in tensors.items() if n.startswith("backbone.")})


def test_incomplete_file_is_found_with_a_config(original, tmp_path, capsys):
    tensors = dict(original[1])
    del tensors["rpn_head.rpn_cls.bias"]
    files.write(tmp_path / "in.safetensors", tensors)
    with pytest.raises(UserError, match="1 missing: rpn_head.rpn_cls.bias"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", config())
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert "that none is missing was not checked" in capsys.readouterr().out


def test_bad_targets(original, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    exists = "exists already"
    for target, word in (("out.pth", "safetensors.torch.load_file"), ("full", exists), ("full/file", exists)):
        with pytest.raises(UserError, match=word):
            convert(original[0], tmp_path / target, config())
    with pytest.raises(UserError, match="does not say which model it holds; give --config"):
        convert(original[0], tmp_path / "run")
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "none.pth", tmp_path / "run", config())


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "htd_jax.convert", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, env={"PATH": "", "JAX_PLATFORMS": "cpu"})


def test_command_line(original, tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    done = command(original[0], tmp_path / "run", "--config", tmp_path / "small.py", "--config.model.num_classes=80")
    assert done.returncode == 0, done.stderr
    assert "80 classes" in done.stdout and (tmp_path / "run" / "checkpoints" / "0").is_dir()


def test_command_line_says_what_is_wrong(original, tmp_path):
    for arguments, word in (((original[0],), "two arguments"), ((original[0], tmp_path / "x.pth"), ".safetensors"),
                            ((original[0], tmp_path / "x", "--nonsense"), "nonsense")):
        done = command(*arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr
