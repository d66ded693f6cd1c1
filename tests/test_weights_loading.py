"""Bringing tensors of several publishers into a tree of parameters, and saying what does not fit.

The trees have the paths of the four published configurations and small shapes.
"""
import gzip
import json
import logging
import pathlib

import numpy as np
import pytest
from flax import traverse_util

from htd_jax.errors import UserError
from htd_jax.weights import files, hub, loading, names

GOLDEN = pathlib.Path(__file__).parent / "golden"
LISTS = json.loads(gzip.decompress((GOLDEN / "checkpoint_names.json.gz").read_bytes()))
ATTENTION = "roi_head.bbox_roi_extractor.1."


def small(name, shape):
    """A shape of the same kind with few elements: channels at most 4, spatial sizes and crops as they are."""
    if len(shape) == 2 and shape[1] == 256 * 49:
        return 4, 2 * 49
    return tuple(min(size, 4 if axis < 2 else 7) for axis, size in enumerate(shape))


def checkpoint(config="htd_r50", seed=0):
    """{name: random array} with every name of the original's checkpoint; doubly listed tensors are equal."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape, _ in LISTS[config]:
        first = names.first_name(name)
        tensors[name] = (tensors[first] if first in tensors else np.zeros((), np.int64) if names.is_counter(name)
                         else rng.standard_normal(small(name, shape)).astype(np.float32))
    return tensors


def tree_like(tensors):
    """The model's tree of zeros into which `tensors` fit, with list indices as integers, as NNX has them."""
    flat = {}
    for name, array in tensors.items():
        if not names.is_counter(name):
            path = names.model_path(name)
            key = tuple(int(part) if part.isdigit() else part for part in path.split("."))
            flat[key] = np.zeros(names.from_checkpoint(path, array).shape, np.float32)
    return traverse_util.unflatten_dict(flat)


def test_tensors_of_integers_are_refused_by_name():
    tensors = checkpoint()
    tree = tree_like(tensors)
    quantised = loading.canonical(tensors | {"neck.fpn_convs.0.conv.bias": np.zeros(4, np.int8)})
    with pytest.raises(UserError, match="1 not of floats: neck.fpn_convs.0.conv.bias int8"):
        loading.load_into(tree, quantised)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("config", LISTS)
def test_round_trip_is_equal_bit_by_bit(config, tmp_path):
    original = checkpoint(config)
    files.write(tmp_path / "in.safetensors", original)
    tree = loading.load_into(tree_like(original), loading.load_tensors(tmp_path / "in.safetensors"))
    files.write(tmp_path / "out.safetensors", loading.complete(loading.export(tree)))
    assert equal(files.read(tmp_path / "out.safetensors"), original)


def test_original_values_reach_their_paths():
    original = checkpoint("htd_r101_dcn")
    tree = loading.load_into(tree_like(original), loading.canonical(original))
    block = tree["backbone"]["layer3"][7]
    offset = original["backbone.layer3.7.conv2.conv_offset.weight"]
    assert np.array_equal(block["conv2"]["offset"]["kernel"], offset.transpose(2, 3, 1, 0))
    assert np.array_equal(block["bn2"]["var"], original["backbone.layer3.7.bn2.running_var"])
    assert np.array_equal(tree["pgraph"]["fcs"][1]["kernel"], original["roi_head.bbox_head.1.fcs.2.weight"].T)


@pytest.mark.parametrize("kept", ["conv", "att."])
def test_attention_is_read_from_either_name(kept):
    original = checkpoint()
    some = {name: array for name, array in original.items()
            if not name.startswith(ATTENTION) or ATTENTION + kept in name}
    assert len(some) == len(original) - 4
    assert equal(loading.canonical(some), loading.canonical(original))


def test_disagreeing_attention_is_an_error():
    original = checkpoint()
    original[ATTENTION + "att.3.bias"] = original[ATTENTION + "att.3.bias"] + 1
    with pytest.raises(UserError, match=r"w.pth: .*conv2.bias and .*att.3.bias are one tensor, but differ"):
        loading.canonical(original, "w.pth")


def test_prefix_of_data_parallel_training_goes():
    original = checkpoint()
    wrapped = {f"module.{name}": array for name, array in original.items()}
    assert equal(loading.canonical(wrapped), loading.canonical(original))


def test_misfits_are_listed_with_their_number():
    original = checkpoint()
    tree = tree_like(original)
    broken = dict(loading.canonical(original))
    for i in range(12):
        broken[f"neck.more.{i}"] = np.zeros(3, np.float32)
    del broken["rpn_head.rpn_cls.bias"], broken["neck.fpn_convs.1.conv.weight"]
    broken["rpn_head.rpn_reg.bias"] = np.zeros(9, np.float32)
    with pytest.raises(UserError) as error:
        loading.load_into(tree, broken, source="w.safetensors")
    message = str(error.value)
    assert message.startswith("w.safetensors does not fit the model: 2 missing: ")
    assert "rpn_head.rpn_cls.bias" in message and "neck.fpn_convs.1.conv.weight" in message
    assert "12 extra: neck.more.0, " in message and "neck.more.9, ..." in message and "neck.more.10" not in message
    assert "1 of another shape: rpn_head.rpn_reg.bias 9 for 4" in message and "\n" not in message


def imagenet(config="htd_r50", prefix="", head="fc."):
    """A classifier's checkpoint with that backbone: torchvision's and timm's names, or MMPretrain's."""
    whole = checkpoint(config, seed=1)
    start = "backbone."
    tensors = {prefix + name.removeprefix(start): array for name, array in whole.items()
               if name.startswith(start) and "conv_offset" not in name}
    return tensors | {f"{head}weight": np.ones((1000, 4), np.float32), f"{head}bias": np.ones(1000, np.float32)}


@pytest.mark.parametrize("prefix, head", [("", "fc."), ("backbone.", "head.fc.")])
@pytest.mark.parametrize("config", ["htd_r50", "htd_x101_dcn"])
def test_backbone_alone_is_enough_to_start(config, prefix, head, caplog):
    tensors = imagenet(config, prefix, head)
    tree = tree_like(checkpoint(config))
    with caplog.at_level(logging.WARNING):
        filled = loading.load_into(tree, loading.canonical(tensors), source="resnet.pth")
    kernel = tensors[prefix + "conv1.weight"].transpose(2, 3, 1, 0)
    assert np.array_equal(filled["backbone"]["stem"]["conv1"]["kernel"], kernel)
    assert filled["neck"]["fpn_convs"][0]["kernel"] is tree["neck"]["fpn_convs"][0]["kernel"]
    assert "stay at their initial values" in caplog.text and "resnet.pth" in caplog.text
    expected = sum("backbone." not in name or "conv_offset" in name for name in loading.canonical(checkpoint(config)))
    assert f"{expected} stay" in caplog.text


def test_backbone_alone_is_no_detector():
    tree = tree_like(checkpoint())
    with pytest.raises(UserError, match="70 missing: neck.lateral_convs.0.conv.weight"):
        loading.load_into(tree, loading.canonical(imagenet()), backbone_only=False)


def test_another_backbone_is_listed():
    with pytest.raises(UserError, match="255 missing: .*1 extra: backbone.layer1.0.se"):
        tensors = loading.canonical(imagenet("htd_r50")) | {"backbone.layer1.0.se.fc.weight": np.ones(3, np.float32)}
        loading.load_into(tree_like(checkpoint("htd_r101")), tensors)


def other_classes():
    """The checkpoint of a model with 3 classes instead of (in these small shapes) 3 + 5."""
    tensors = loading.canonical(checkpoint())
    sized = lambda n: {name: np.ones((n, *array.shape[1:]), np.float32) if "fc_cls" in name or "glbctx_head.fc" in name
                       else array for name, array in tensors.items()}
    return sized(9), sized(4)


def test_another_number_of_classes_needs_a_word():
    there, here = other_classes()
    with pytest.raises(UserError, match="6 of another shape: .*classifier has 8 classes: .*new_classifier"):
        loading.load_into(tree_like(here), there)


def test_another_number_of_classes_on_request_is_said_aloud(caplog):
    there, here = other_classes()
    tree = tree_like(here)
    with caplog.at_level(logging.WARNING):
        filled = loading.load_into(tree, there, new_classifier=True)
    assert filled["sfa"]["fc"]["kernel"] is tree["sfa"]["fc"]["kernel"]
    assert np.array_equal(filled["rpn"]["cls"]["bias"], there["rpn_head.rpn_cls.bias"])
    assert "6 stay at their initial values: " in caplog.text and "roi_head.bbox_head.0.fc_cls.weight" in caplog.text


def test_same_number_of_classes_is_kept_even_on_request():
    tensors = loading.canonical(checkpoint())
    filled = loading.load_into(tree_like(tensors), tensors, new_classifier=True)
    assert np.array_equal(filled["pgraph"]["fc_cls"]["bias"], tensors["roi_head.bbox_head.1.fc_cls.bias"])


def test_new_classifier_excuses_nothing_else():
    there, here = other_classes()
    there["rpn_head.rpn_cls.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError, match="1 of another shape: rpn_head.rpn_cls.bias 7 for 3"):
        loading.load_into(tree_like(here), there, new_classifier=True)


def test_name_on_the_hub(tmp_path, monkeypatch):
    """The repository has no .safetensors; the download itself is replaced."""
    from huggingface_hub import errors
    asked = []

    def download(repo, file, revision=None):
        asked.append((repo, file, revision))
        if file == "model.safetensors":
            raise errors.EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert hub.download("hf:timm/resnet50.tv_in1k@v1") == str(tmp_path / "pytorch_model.bin")
    assert asked == [("timm/resnet50.tv_in1k", file, "v1") for file in ("model.safetensors", "pytorch_model.bin")]


def test_hub_without_a_network(monkeypatch):
    from huggingface_hub import errors

    def download(*args, **kwargs):
        raise errors.LocalEntryNotFoundError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="hf:timm/resnet50.tv_in1k: cannot be downloaded.*network"):
        loading.load_tensors("hf:timm/resnet50.tv_in1k")
    with pytest.raises(UserError, match="hf:OWNER/NAME"):
        loading.load_tensors("hf:resnet50")
