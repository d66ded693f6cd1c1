"""Whole steps through the project's own functions: training (`make_step`) and detection (`detect`).

Each is measured in a process of its own, so that peak memory is this step's alone. The images are noise.
"""
import ctypes
import json
import os
import pathlib
import resource
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import arithmetic, inputs, models, timing, yardsticks
from benchmarks.table import ROOT, Row
from htd_jax import mesh as mesh_lib
from htd_jax.models import detect, functional, losses
from htd_jax.training import step as step_lib
from htd_jax.training.optimizer import build
from htd_jax.training.schedule import learning_rate
from htd_jax.training.state import init_state
from tests.original import reference

LIKELY = 150  # RoIs above .05 in an image, once a detector is trained
TRUTHS, MANY, SLOTS = 8, 100, 100  # boxes of an image, or of one with many, and the slots they lie in
WORDS = {"detect all": ", all proposals regressed", "detect": f", {LIKELY} proposals regressed", "train": "",
         "train many": f", {MANY} boxes an image"}
BARS = {  # on a CPU in times the yardstick, of which the original took 33 (detect) and 55 (train)
    ("cpu", "detect all", "htd_r50"): "22 times", ("cpu", "detect", "htd_r50"): "11 times",
    ("cpu", "train", "htd_r50"): "55 times, 4 GiB", ("gpu", "train", "htd_r50"): "120 images/s, .67 times",
    ("gpu", "train", "htd_r101_dcn"): "60 images/s", ("gpu", "detect", "htd_r50"): "200 images/s",
}


class Case(NamedTuple):
    """`what`: 'train' (`TRUTHS` boxes an image), 'train many' (`MANY`, of which each is a positive that BA regresses),
    'detect' (`LIKELY` RoIs are regressed) or 'detect all' (every one is), `batch` images (h, w)."""

    what: str
    name: str
    batch: int
    image: tuple = (800, 1344)
    repeats: int = 5


def cases(names):
    """What is measured on this backend, of the configurations `names`."""
    if jax.default_backend() == "cpu":
        cells = ("detect all", 1, 3), ("detect", 1, 3), ("train", 2, 3), ("train many", 2, 3)
    else:
        cells = ("train", 16, 10), ("detect", 8, 10)
    return [Case(what, name, batch, repeats=repeats) for name in names for what, batch, repeats in cells]


def in_process(case):
    """`measure` in a process of its own, without the compilation cache."""
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, "-m", "benchmarks.steps"], input=json.dumps(case), text=True, cwd=ROOT,
                          stdout=subprocess.PIPE, check=True, env=os.environ | settings)
    row = Row(*json.loads(done.stdout.splitlines()[-1]))
    return row._replace(times=timing.Times(*row.times),
                        yardstick_times=row.yardstick_times and timing.Times(*row.yardstick_times))


def measure(case, config):
    """The `Row` of a case."""
    prepare = train_step if case.what.startswith("train") else detect_step
    call, compile_seconds, flops, batch = prepare(case, config)
    forget_peak_memory()
    call()
    memory = peak_memory()
    name, yardstick = beside(case, batch)
    measured = timing.times({"ours": call} | ({name: yardstick} if yardstick else {}), case.repeats)
    height, width = case.image
    what = f"{case.name} {case.what.split()[0]}, {case.batch} x {height}x{width}{WORDS[case.what]}"
    return Row(what, measured["ours"], case.batch, compile_seconds, memory, flops, name, measured.get(name),
               BARS.get((jax.default_backend(), case.what, case.name), ""))


def train_step(case, config):
    """(call, compile seconds, flops, batch) of the step that train.py runs."""
    config.batch_size = case.batch
    functions, schedule = functional.functions(config), learning_rate(config, 1000)
    optimizer, mesh = build(config, schedule), mesh_lib.make_mesh(jax.devices()[:1])
    params, frozen = models.parameters(case.name, config)
    truths = MANY if case.what == "train many" else TRUTHS
    batch = inputs.batch(case.batch, case.image, np.random.default_rng(0), truths, SLOTS, config.model.num_classes)
    placed = mesh_lib.put_local_rows(batch, mesh)
    gradient = jax.value_and_grad(functions.loss, has_aux=True)
    with boxes_alone(truths, config):  # as few as there can be
        flops = arithmetic.least(gradient, params, frozen, placed, jax.random.key(0)).flops
    started = jax.jit(lambda *given: init_state(*given, optimizer, config.ema), out_shardings=mesh_lib.replicated(mesh))
    state = started(params, frozen)
    jitted = step_lib.make_step(functions.loss, optimizer, schedule, mesh, config)
    step, seconds = timing.compile_(jitted, state, placed)

    def call():
        nonlocal state
        state, logs = step(state, placed)
        jax.block_until_ready(logs)

    del params, frozen  # the step consumes them
    reference.weights.cache_clear()  # it holds a copy of them that training does not have
    return call, seconds, flops, batch


def boxes_alone(truths, config):
    """Where BA's slots hold an image's own boxes and nothing else: the least number of positives there can be."""
    return mock.patch.object(losses, "MAX_ROI_POSITIVES", truths / config.train.roi_samples)


def detect_step(case, config):
    """(call, compile seconds, flops, batch) of the detection that eval.py runs, from images on the host."""
    params, frozen = models.parameters(case.name, config)
    batch = inputs.batch(case.batch, case.image, np.random.default_rng(0))
    config.test.score = 0.0
    regressed = config.test.proposals
    if case.what == "detect":
        regressed = min(LIKELY, regressed)
        config.test.score = models.score_passed_by(regressed, params, frozen, batch, config)
    chunk = min(detect.REGRESSED_AT_ONCE, config.test.proposals)  # of which the loop counts once
    flops = (arithmetic.least(functional.functions(config).detect, (params, frozen), batch).flops
             + case.batch * (regressed - chunk) * models.regression_flops(config))
    step, seconds = timing.compile_(jax.jit(functional.functions(config).detect), (params, frozen), batch)
    return lambda: jax.block_until_ready(step((params, frozen), batch)), seconds, flops, batch


def beside(case, batch):
    """(name, call) of the yardstick; ('-', None) where it is not to be had."""
    if jax.default_backend() == "cpu":
        name, call = "torch conv2d on P2", yardsticks.conv_p2(case.image)
    else:
        name, call = "torchvision Faster R-CNN R50", yardsticks.faster_rcnn(case.what, batch)
    return (name, call) if call else ("-", None)


def forget_peak_memory():
    """Resets the peak of this process, where the system can (Linux): compiling has a peak of its own.

    What that has freed goes back to the system first, as far as it is the C library that keeps it.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another system's library
        pass
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory():
    """Bytes at the peak: of the accelerator, or of this process."""
    if timing.device_memory_peak():
        return timing.device_memory_peak()
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    what, name, batch, image, repeats = json.load(sys.stdin)
    print(json.dumps(measure(Case(what, name, batch, tuple(image), repeats), models.load(name))))
