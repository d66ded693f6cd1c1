"""Every benchmark runs, on shapes that take seconds. What it measures is not asserted."""
import math
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_in
import tiny

from benchmarks import arithmetic, gpu, inputs, layers, models, operators, parts, scaling, start, steps, table, timing
from htd_jax.models import functional
from htd_jax.ops.roi_align import roi_align

IMAGE = (64, 96)


def config(**more):
    result = tiny.config(pathlib.Path("unused"), model__num_classes=3, **more)
    result.dtype = "float32"
    return result


def test_timing_gives_seconds_memory_and_flops():
    a = jnp.ones((32, 32))
    product = timing.compiled(jnp.matmul, a, a)
    times = timing.times({"a": product.call, "b": product.call}, 3)
    assert product.flops == 2 * 32**3 and product.memory >= 3 * a.nbytes
    assert list(times) == ["a", "b"] and 0 < times["a"].low <= times["a"].median <= times["a"].high


def test_arithmetic_counts_products_convolutions_and_loops():
    a, image, kernel = jnp.ones((4, 8)), jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 5))
    convolve = lambda x, k: jax.lax.conv(jnp.moveaxis(x, -1, 1), jnp.transpose(k, (3, 2, 0, 1)), (2, 2), "VALID")
    assert arithmetic.program(lambda a: jax.lax.map(lambda row: a @ row, a), a) == (2 * 4 * 8 * 4, 4 * 4 * (32 + 8 + 4))
    assert arithmetic.program(convolve, image, kernel).flops == 2 * (2 * 2 * 5) * 27
    down = jax.grad(lambda x: convolve(x, kernel).sum())
    assert arithmetic.program(down, image).flops >= 2 * (2 * 2 * 5) * 27  # and each gradient as much again


def test_what_roi_align_computes_is_not_needed():
    features, rois = jnp.ones((8, 12, 4)), inputs.boxes(1000, (32, 48), np.random.default_rng(0))
    crop = lambda f, r: roi_align(f, r, 4)
    few, many = (arithmetic.program(crop, features, rois[:n]).flops for n in (128, 1000))
    assert many == 8 * few and arithmetic.least(crop, features, rois).flops == 0


def test_operators():
    sizes = operators.Sizes(image=(128, 192), channels=8, rois=20, candidates=30, classes=3, truths=2)
    rows = operators.rows(sizes, repeats=1)
    assert len(rows) == 8
    text = table.markdown(rows, peak=1e9).splitlines()
    assert len({line.count("|") for line in text}) == 1 and len(text) == 10


def measure_step(what, image):
    row = steps.measure(steps.Case(what, "tiny", 2, image, repeats=1), config())
    assert row.images == 2 and row.memory > 0 and row.flops > 0 and math.isfinite(row.times.median)


@pytest.mark.parametrize("what", ["train", "detect", "detect all"])
def test_steps(what, monkeypatch):
    """With functions that compile at once in the place of the detector's."""
    monkeypatch.setattr(functional, "functions", stand_in.functions)
    monkeypatch.setattr(models, "score_passed_by", lambda count, *_: 0.1 * count)  # of the real detector's proposals
    measure_step(what, (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "detect", "detect all"])
def test_steps_of_the_detector(what):
    measure_step(what, IMAGE)


@pytest.mark.slow
def test_parts():
    rows = parts.rows("tiny", config(), IMAGE, repeats=1)
    assert rows[-1].times.median == pytest.approx(sum(row.times.median for row in rows[:-1]))


@pytest.mark.slow
def test_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "SMALL", tiny.SETTINGS | {"model.num_classes": 20})
    found = scaling.sweeps(scaling.Ranges((1,), (10,), (10,), IMAGE), repeats=1)
    scaling.plot(found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    assert len(scaling.markdown(found).splitlines()) == 5


def test_scaling_refuses_what_is_worse_than_linear():
    grown = lambda seconds: scaling.Sweep("a step", "images", (1, 2), [timing.Times(s, s, s) for s in (1.0, seconds)])
    scaling.check([grown(2.0)])
    with pytest.raises(AssertionError, match="1 to 2 images cost 4.00 times"):
        scaling.check([grown(4.0)])


def test_layers_are_those_of_the_forward_pass():
    found, small = layers.layers("train", config(), 2, IMAGE), config()
    frozen = layers.frozen_layers(small)
    assert [layer.operation for layer in found[:frozen]] == ["convolution"] * frozen
    assert found[0].shapes[0] == (2, *IMAGE, 3) and {layer.operation for layer in found} == {"convolution", "product"}
    small.model.update(depth=50, frozen_stages=1)
    assert layers.frozen_layers(small) == 11


def test_layers_in_torch_give_what_ours_give():
    torch = pytest.importorskip("torch")
    layer = layers.Layer("product", ((2, 5, 3), (4, 3, 2)), (((2,), (1,)), ((0,), (2,))))
    compute, shapes = layers._product(torch, layer)
    a, b = (np.random.default_rng(k).normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes))
    ours = jax.lax.dot_general(a, b, layer.more)
    np.testing.assert_allclose(compute(*map(torch.from_numpy, (a, b))), ours, atol=1e-5)
    layer = layers.Layer("convolution", ((1, 8, 9, 4), (3, 3, 2, 6)), ((2, 2), ((1, 1), (1, 1)), (1, 1), 2))
    compute, shapes = layers._convolution(torch, layer)
    assert compute(*map(torch.zeros, shapes)).shape == (1, 6, 4, 5)
    assert layers.seconds([layer] * 3, forward_only=1, repeats=1) > 0


FAKE_TRAINING = """
import os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
if "--fail" in sys.argv:
    sys.exit(3)
time.sleep(0 if cache.exists() else 0.5)
cache.mkdir(exist_ok=True), workdir.mkdir()
(workdir / "metrics.jsonl").write_text("{}")
time.sleep(60)
"""


def test_start_times_two_starts_that_share_a_cache(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(FAKE_TRAINING)
    monkeypatch.setattr(start, "ROOT", tmp_path)
    first, second = start.starts([])
    assert 0 < second < first - 0.3 < 30
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        start.starts(["--fail"])


def test_gpu_prints_each_figure_and_begins_nothing_late(monkeypatch, capsys):
    times = timing.Times(2.0, 2.0, 2.0)
    monkeypatch.setattr(steps, "in_process", lambda case: table.Row(case.name, times, case.batch))
    monkeypatch.setattr(timing, "peak_flops", lambda dtype: 1e12)
    late = iter([0.0, 1.0, 2.0, gpu.LAST_START + 1.0, gpu.LAST_START + 1.0])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(late))
    monkeypatch.setattr(gpu, "agreement", lambda: "- forms agree")
    with pytest.raises(SystemExit, match="0"):
        gpu.main(gpu.CASES[:2])
    printed = capsys.readouterr().out
    assert "forms agree" in printed and "8.0 images/s (2 s so far)" in printed
    assert "detect htd_r50: left out after 301 s" in printed


def test_gpu_says_whether_forms_agree():
    assert gpu.agreement().startswith("- forms of RoIAlign agree")
