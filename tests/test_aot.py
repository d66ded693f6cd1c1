"""Compilation for TPUs that are not there: what it is asked for, and (slow, with libtpu) what fits one chip."""
import importlib.util
import json
import subprocess
import sys

import pytest

from configs import htd_r50, htd_r101_dcn
from htd_jax import aot
from htd_jax.errors import UserError

FITS = [  # config, batch, rematerialisation, image
    (htd_r50, 8, False, (800, 1344)),
    (htd_r50, 16, True, (800, 1344)),
    (htd_r101_dcn, 2, True, (800, 1344)),
    (htd_r101_dcn, 1, True, aot.largest_bucket(htd_r101_dcn.get_config(), "train")),
]


def bfloat16(module, batch_size, remat):
    config = module.get_config()
    config.model.num_classes, config.dtype = 80, "bfloat16"
    config.batch_size, config.remat = batch_size, remat
    return config


def test_batch_has_what_the_pipeline_yields():
    batch = aot.batch_of(3, (64, 96), boxes=5)
    assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
        "image": ((3, 64, 96, 3), "uint8"), "size": ((3, 2), "int32"), "padded": ((3, 2), "int32"),
        "scale": ((3, 2), "float32"), "boxes": ((3, 5, 4), "float32"), "labels": ((3, 5), "int32"), "valid": ((3, 5), "bool")}


def test_largest_bucket_is_the_one_compiled():
    assert aot.largest_bucket(htd_r50.get_config(), "train") == (800, 1344)
    assert aot.largest_bucket(htd_r101_dcn.get_config(), "detect") == (800, 1344)
    assert aot.largest_bucket(htd_r101_dcn.get_config(), "train")[0] >= 1376


def test_unknown_chip_is_named():
    with pytest.raises(UserError, match="v9z:1x1"):
        aot.compile_for(htd_r50.get_config(), "v9z:1x1", "train", (800, 1344))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("module, batch_size, remat, shape", FITS)
def test_training_fits_a_v5e_chip(module, batch_size, remat, shape):
    facts = aot.compile_for(bfloat16(module, batch_size, remat), "v5e:1x1", "train", shape)
    assert facts["fits"], facts


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_command_prints_one_json_object_for_a_slice():
    command = [sys.executable, "-m", "htd_jax.aot", "--config", "configs/htd_r50.py", "--topology", "v5e:2x2",
               "--config.dtype=bfloat16", "--config.batch_size=8", "--image", "256,320"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    assert facts["topology"] == "v5e:2x2" and facts["fits"] and facts["flops"] > 0
