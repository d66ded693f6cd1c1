"""The table of names against the model itself, and weights into and out of a small real one."""
import gzip
import importlib
import json
import logging
import math
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from htd_jax.config import default_config
from htd_jax.errors import UserError
from htd_jax.models.htd import build, trainable
from htd_jax.weights import files, loading, names

GOLDEN = pathlib.Path(__file__).parent / "golden"
LISTS = json.loads(gzip.decompress((GOLDEN / "checkpoint_names.json.gz").read_bytes()))
MILLIONS = {"htd_r50": (74.41, 74.64), "htd_r101": (93.40, 93.63), "htd_r101_dcn": (94.69, 94.91),
            "htd_x101_dcn": (137.27, 137.68)}  # trained, all: the original's count


def abstract(settings):
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: build(settings, nnx.Rngs(0)))


def flat(tree):
    return {".".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


@pytest.fixture(scope="module", params=LISTS)
def published(request):
    """(name, settings, abstract model) of each published configuration."""
    settings = importlib.import_module(f"configs.{request.param}").get_config().model
    settings.num_classes = 80
    return request.param, settings, abstract(settings)


def test_model_has_the_tensors_of_the_original(published):
    config, _, model = published
    here = {names.checkpoint_name(path): names.checkpoint_shape(leaf.shape)
            for path, leaf in flat(loading.tree_of(model)).items()}
    there = {name: tuple(shape) for name, shape, _ in LISTS[config]
             if names.first_name(name) == name and not names.is_counter(name)}
    assert here == there


def test_training_updates_what_the_original_updates(published):
    config, settings, model = published
    _, learnt, _ = nnx.split(model, trainable(settings), ...)
    updated = {names.model_path(name) for name, _, updates in LISTS[config] if updates}
    assert set(flat(nnx.to_pure_dict(learnt))) == updated


def test_number_of_parameters(published):
    config, settings, model = published
    _, learnt, _ = nnx.split(model, trainable(settings), ...)
    count = lambda state: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) / 1e6
    assert (count(learnt), count(nnx.state(model, nnx.Param))) == pytest.approx(MILLIONS[config], abs=0.006)


def torchvision_shapes(depth, width=64):
    """{name: shape} of torchvision's resnet18/34 (which timm shares), from its source."""
    shapes = {"conv1.weight": (width, 3, 7, 7), **norm("bn1", width)}
    inputs = width
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]):
        planes = width * 2**stage
        for i in range(blocks):
            block = f"layer{stage + 1}.{i}"
            shapes |= {f"{block}.conv1.weight": (planes, inputs, 3, 3), **norm(f"{block}.bn1", planes),
                       f"{block}.conv2.weight": (planes, planes, 3, 3), **norm(f"{block}.bn2", planes)}
            if i == 0 and stage > 0:
                shapes |= {f"{block}.downsample.0.weight": (planes, inputs, 1, 1),
                           **norm(f"{block}.downsample.1", planes)}
            inputs = planes
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def norm(name, channels):
    vectors = {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def small(**changes):
    """Settings of a model of a few thousand parameters."""
    settings = default_config().model
    settings.update(depth=18, width=4, fpn_channels=8, fc_channels=8, ba_channels=4, ba_out_channels=8, ba_groups=2,
                    num_classes=3)
    settings.update(changes)
    return settings


def make(seed=0, **changes):
    """A small model with random values everywhere; running its own initialisation would compile for half a minute."""
    model, rng = abstract(small(**changes)), np.random.default_rng(seed)
    loading.put(model, jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), loading.tree_of(model)))
    return model


def initialise(model, source, new_classifier=False):
    """The weights of `source` into `model`, as training starts from them."""
    tensors = loading.load_tensors(source)
    loading.put(model, loading.load_into(loading.tree_of(model), tensors, source=source, new_classifier=new_classifier))


def same(a, b):
    a, b = flat(loading.tree_of(a)), flat(loading.tree_of(b))
    return [path for path in a if np.array_equal(a[path], b[path])]


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_start_from_torchvision(depth, tmp_path, caplog):
    rng = np.random.default_rng(0)
    tensors = {name: rng.random(shape, np.float32) if shape else np.zeros((), np.int64)
               for name, shape in torchvision_shapes(depth, width=4).items()}
    files.write(tmp_path / "resnet.safetensors", tensors)
    model = make(depth=depth)
    with caplog.at_level(logging.WARNING):
        initialise(model, tmp_path / "resnet.safetensors")
    kernel = model.backbone.layer2[0].downsample.conv.kernel[...]
    assert np.array_equal(kernel, tensors["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(model.backbone.layer4[1].bn2.var[...], tensors["layer4.1.bn2.running_var"])
    others = [path for path in flat(loading.tree_of(model)) if "backbone" not in path]
    assert len(same(model, make(depth=depth))) == len(others)
    assert "stay at their initial values" in caplog.text


@pytest.mark.parametrize("changes", [{}, dict(norm="gn"), dict(depth=50, groups=2, base_width=32, deformable=True)],
                         ids=["frozen_bn", "gn", "grouped_deformable"])
def test_model_to_file_to_model(changes, tmp_path):
    one, other = make(0, **changes), make(1, **changes)
    files.write(tmp_path / "w.safetensors", loading.complete(loading.export(loading.tree_of(one))))
    total = len(flat(loading.tree_of(one)))
    assert len(same(one, other)) < total
    initialise(other, tmp_path / "w.safetensors")
    assert len(same(one, other)) == total


def test_whole_weights_start_a_model_of_other_classes(tmp_path, caplog):
    one, other = make(0, num_classes=7), make(1)
    files.write(tmp_path / "w.safetensors", loading.export(loading.tree_of(one)))
    with pytest.raises(UserError, match="has 7 classes"):
        initialise(other, tmp_path / "w.safetensors")
    initialise(other, tmp_path / "w.safetensors", new_classifier=True)
    assert np.array_equal(other.stage0.fcs[0].kernel[...], one.stage0.fcs[0].kernel[...])
    assert np.array_equal(other.sfa.fc.kernel[...], make(1).sfa.fc.kernel[...])
    assert "6 stay at their initial values" in caplog.text


def test_an_abstract_model_is_filled(tmp_path):
    """Shapes first, arrays from the file: no random initialisation in between."""
    files.write(tmp_path / "w.safetensors", loading.export(loading.tree_of(make(3))))
    model = abstract(small())
    initialise(model, tmp_path / "w.safetensors")
    assert len(same(model, make(3))) == len(flat(loading.tree_of(model)))
