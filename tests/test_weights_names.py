"""The table of names against the names and shapes of the original's four kinds of checkpoint.

`golden/checkpoint_names.json.gz` lists them as the published PyTorch implementation does:
{config: [[name, shape, whether training updates it]]}.
"""
import gzip
import json
import math
import pathlib

import numpy as np
import pytest

from htd_jax.weights import names

GOLDEN = pathlib.Path(__file__).parent / "golden"
LISTS = json.loads(gzip.decompress((GOLDEN / "checkpoint_names.json.gz").read_bytes()))


@pytest.mark.parametrize("config", LISTS)
def test_every_name_has_one_path_and_back(config):
    there = [name for name, _, _ in LISTS[config] if not names.is_counter(name)]
    paths = {name: names.model_path(name) for name in there}
    assert None not in paths.values()
    assert all(names.checkpoint_name(path) == names.first_name(name) for name, path in paths.items())
    firsts = [name for name in there if names.first_name(name) == name]
    assert len({paths[name] for name in firsts}) == len(firsts) == len(there) - 4


@pytest.mark.parametrize("config", LISTS)
def test_layout_gives_the_original_shape(config):
    """Arrays without memory: only names and shapes of 137 M parameters matter here."""
    for name, shape, _ in LISTS[config]:
        if path := names.model_path(name):
            here = names.from_checkpoint(path, np.broadcast_to(np.int8(0), shape))
            assert names.checkpoint_shape(here.shape) == tuple(shape), name
            assert names.to_checkpoint(path, here).shape == tuple(shape), name


@pytest.mark.parametrize("config", LISTS)
def test_all_names_of_the_original_are_written(config):
    """Both names of BA's attention convs and PyTorch's batch counters, so that its strict loading is content."""
    firsts = {name for name, _, _ in LISTS[config] if names.first_name(name) == name and not names.is_counter(name)}
    written = {name for first in firsts for name in names.all_names(first)}
    written |= {names.counter_name(name) for name in firsts} - {None}
    assert written == {name for name, _, _ in LISTS[config]}


def test_kernels_turn_and_norms_do_not():
    assert names.model_path("backbone.layer3.5.conv2.weight") == "backbone.layer3.5.conv2.kernel"
    assert names.model_path("backbone.layer3.5.bn2.weight") == "backbone.layer3.5.bn2.scale"
    assert names.model_path("backbone.layer2.0.downsample.1.running_var") == "backbone.layer2.0.downsample.bn.var"
    assert names.model_path("backbone.layer2.0.conv2.conv_offset.bias") == "backbone.layer2.0.conv2.offset.bias"
    assert names.model_path("roi_head.bbox_head.1.fcs.2.weight") == "pgraph.fcs.1.kernel"
    assert names.model_path("roi_head.bbox_roi_extractor.1.att.3.bias") == "ba.att_conv2.bias"


@pytest.mark.parametrize("name", ["fc.weight", "backbone.layer1.0.se.weight", "backbone.conv1.running_mean",
                                  "roi_head.bbox_head.1.fcs.1.weight", "roi_head.bbox_head.0.fc_cls", ""])
def test_foreign_names_have_no_path(name):
    assert names.model_path(name) is None


def test_convolution_layout():
    kernel = np.arange(3 * 3 * 2 * 4).reshape(3, 3, 2, 4)
    there = names.to_checkpoint("backbone.layer1.0.conv2.kernel", kernel)
    assert there.shape == (4, 2, 3, 3)
    assert there[3, 1, 0, 2] == kernel[0, 2, 1, 3]
    assert np.array_equal(names.from_checkpoint("backbone.layer1.0.conv2.kernel", there), kernel)


def test_crops_are_flattened_channel_first_there_and_last_here():
    channels, outputs = 5, 3
    rng = np.random.default_rng(0)
    crop, weight = rng.random((7, 7, channels)), rng.random((outputs, channels * 49))
    kernel = names.from_checkpoint("pgraph.fcs.0.kernel", weight)
    np.testing.assert_allclose(crop.reshape(-1) @ kernel, weight @ crop.transpose(2, 0, 1).reshape(-1), rtol=1e-12)
    assert np.array_equal(names.to_checkpoint("pgraph.fcs.0.kernel", kernel), weight)
    later = names.from_checkpoint("pgraph.fcs.1.kernel", weight)
    assert np.array_equal(later, weight.T)


def test_number_of_parameters():
    """Millions (trained, all) as the original counts them, the doubly listed tensors once."""
    expected = {"htd_r50": (74.41, 74.64), "htd_r101": (93.40, 93.63), "htd_r101_dcn": (94.69, 94.91),
                "htd_x101_dcn": (137.27, 137.68)}
    for config, counts in expected.items():
        once = [(math.prod(shape), trained) for name, shape, trained in LISTS[config]
                if names.first_name(name) == name and trained is not None]
        trained, total = sum(n for n, updates in once if updates), sum(n for n, _ in once)
        assert (trained / 1e6, total / 1e6) == pytest.approx(counts, abs=0.006), config
