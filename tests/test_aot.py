"""Compilation for accelerators that are not there: the estimate, and (slow) what fits one chip."""
import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from configs import htd_r50, htd_r101_dcn
from htd_jax import aot
from htd_jax.aot.chips import CHIPS
from htd_jax.aot.estimate import estimate, stated_lengths, table
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
        "scale": ((3, 2), "float32"), "boxes": ((3, 5, 4), "float32"), "labels": ((3, 5), "int32"),
        "valid": ((3, 5), "bool")}


def test_largest_bucket_is_the_one_compiled():
    assert aot.largest_bucket(htd_r50.get_config(), "train") == (800, 1344)
    assert aot.largest_bucket(htd_r101_dcn.get_config(), "detect") == (800, 1344)
    assert aot.largest_bucket(htd_r101_dcn.get_config(), "train")[0] >= 1376


def test_unknown_chip_is_named():
    with pytest.raises(UserError, match="v9z:1x1"):
        aot.compile_for(htd_r50.get_config(), "v9z:1x1", "train", (800, 1344))


HEADER = """HloModule jit_step

FileNames
1 "/there/htd_jax/ops/nms.py"
2 "/there/jax/_src/lax.py"
3 "/there/htd_jax/models/fpn.py"

FunctionNames
1 "nms"
2 "while_loop"
3 "FPN.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=43 end_line=43 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=4 end_column=9}
3 {file_name_id=3 function_name_id=3 line=26 end_line=26 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=1}

"""
TPU = HEADER + """%body (p: (s32[])) -> (s32[]) {
  %p = (s32[]{:T(128)}) parameter(0)
  ROOT %work = f32[8]{0:T(128)} fusion(%p), metadata={stack_frame_id=2}, backend_config={"estimated_cycles":"1500"}
}

%counted (p: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%until (p: (s32[])) -> pred[] {
  ROOT %go = pred[]{:T(512)} get-tuple-element(%p), index=1
}

%short (p: f32[]) -> f32[] {
  ROOT %s = f32[]{:T(128)} add(%p, %p), backend_config={"estimated_cycles":"3000"}
}

%long (p: f32[]) -> f32[] {
  ROOT %l = f32[]{:T(128)} add(%p, %p), metadata={stack_frame_id=3}, backend_config={"estimated_cycles":"15000"}
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %ten = (s32[]{:T(128)}) while(%a), condition=%counted, body=%body, metadata={stack_frame_id=3}
  %some = (s32[]{:T(128)}) while(%a), condition=%until, body=%body, metadata={stack_frame_id=2}
  ROOT %either = f32[]{:T(128)} conditional(%p, %a, %a), branch_computations={%short, %long}
}
"""
GPU = HEADER + """ENTRY %main (a: bf16[8,200,336,256], k: bf16[3,3,256,256]) -> bf16[8,200,336,256] {
  %a = bf16[8,200,336,256]{3,2,1,0} parameter(0)
  %k = bf16[3,3,256,256]{3,2,1,0} parameter(1)
  %conv = bf16[8,200,336,256]{3,2,1,0} convolution(%a, %k), metadata={stack_frame_id=3}
  ROOT %copy = bf16[8,200,336,256]{3,2,1,0} fusion(%conv), kind=kLoop, calls=%f, metadata={stack_frame_id=2}
}
"""


def test_cycles_of_a_tpu_with_loops_and_branches():
    found = estimate(TPU, CHIPS["v5e"], {"ops/nms.py nms": 4})
    assert found.seconds == pytest.approx((10 * 1500 + 4 * 1500 + 15000) / 1.5e9)
    assert found.loops == {"ops/nms.py:43 nms": 4} and found.kernels == 10 + 4 + 1
    lines = table(found)
    assert "0.01 ms  ops/nms.py:43 nms" in lines and "4 runs taken for the loop at ops/nms.py:43 nms" in lines
    assert estimate(TPU, CHIPS["v5e"], {}).loops == {"ops/nms.py:43 nms": 1}


def test_roofline_of_a_gpu():
    conv, copy = estimate(GPU, CHIPS["h100"], {}).rows
    assert conv.source == "models/fpn.py:26 __call__" and copy.source == "ops/nms.py:43 nms"
    assert conv.seconds == pytest.approx(2 * 8 * 200 * 336 * 9 * 256 * 256 / 989e12 + 2e-6)
    assert copy.seconds == pytest.approx(2 * 8 * 200 * 336 * 256 * 2 / 3.35e12 + 2e-6)


def test_stated_lengths_name_loops_that_are_there():
    """Each is a function of the file it names."""
    for source in stated_lengths(htd_r50.get_config(), "detect"):
        file, function = source.split()
        assert f"def {function}(" in (ROOT / "htd_jax" / file).read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("module, batch_size, remat, shape", FITS)
def test_training_fits_a_v5e_chip(module, batch_size, remat, shape):
    facts = aot.compile_for(bfloat16(module, batch_size, remat), "v5e:1x1", "train", shape)
    assert facts["fits"], facts


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax[cuda13] is not installed")
def test_a_gpu_is_compiled_for():
    facts = aot.compile_for(bfloat16(htd_r50, 1, False), "h100:1", "detect", (256, 320))
    assert facts["fits"] and facts["estimated_ms"] > 0 and "ops/nms.py" in str(facts["loops"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_command_prints_one_json_object_for_a_slice():
    command = [sys.executable, "-m", "htd_jax.aot", "--config", "configs/htd_r50.py", "--topology", "v5e:2x2",
               "--config.dtype=bfloat16", "--config.batch_size=8", "--image", "256,320"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    assert facts["topology"] == "v5e:2x2" and facts["fits"] and facts["flops"] > 0 and facts["estimated_ms"] > 0
