"""Cost as batch, proposals and ground truth grow, on a small detector: never worse than linear, and shown as a plot."""
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import inputs, timing
from benchmarks.table import ROOT
from htd_jax import config as config_lib
from htd_jax.models import functional

PLOT = ROOT / "docs" / "images" / "scaling.png"
NOISE = 1.25  # what two measurements of the same may differ by
SMALL = {"model.depth": 18, "model.width": 16, "model.norm": "gn", "model.frozen_stages": 0, "model.fpn_channels": 32,
         "model.fc_channels": 256, "model.ba_channels": 72, "model.ba_out_channels": 64, "model.num_classes": 20,
         "train.nms_pre": 500, "train.proposals": 500, "train.roi_samples": 128}


class Sweep(NamedTuple):
    """Seconds of a call (`times`, one `timing.Times` each) at every one of `counts`."""

    what: str
    unit: str
    counts: tuple
    times: list


class Ranges(NamedTuple):
    """The counts that each sweep goes through, and the images (h, w)."""

    batches: tuple = (1, 2, 4, 8, 16)
    proposals: tuple = (100, 200, 500, 1000, 2000)
    truths: tuple = (1, 10, 30, 100)
    image: tuple = (192, 256)


def sweeps(ranges=None, repeats=7):
    """All sweeps: the gradient by batch and by ground truth, detection (every proposal regressed) by proposals."""
    batches, proposals, truths, image = ranges or Ranges()
    return [sweep("training step by images", "images", batches, lambda n: gradient(n, 10, image), repeats),
            sweep("detection by proposals", "proposals", proposals, lambda n: detection(n, image), repeats),
            sweep("training step by boxes", "boxes an image", truths, lambda n: gradient(1, n, image), repeats)]


def sweep(what, unit, counts, make, repeats):
    """Measures make(count), a `timing.Compiled`, for all counts in turns."""
    measured = timing.times({count: make(count).call for count in counts}, repeats)
    return Sweep(what, unit, tuple(counts), [measured[count] for count in counts])


def gradient(batch_size, truths, image):
    """Losses and gradients of a batch."""
    functions, parameters = _detector(_config())
    batch = jax.device_put(inputs.batch(batch_size, image, np.random.default_rng(0), truths, classes=20))
    loss = jax.value_and_grad(functions.loss, has_aux=True)
    return timing.compiled(loss, *parameters, batch, jax.random.key(0), flops=0)


def detection(proposals, image):
    """Detections of one image."""
    config = _config()
    config.test.update(score=0.0, proposals=proposals, nms_pre=proposals)
    functions, parameters = _detector(config)
    return timing.compiled(functions.detect, parameters, inputs.batch(1, image, np.random.default_rng(0)), flops=0)


def _config():
    config = config_lib.default_config()
    config.update_from_flattened_dict(SMALL)
    return config


def _detector(config):
    functions = functional.functions(config)
    return functions, jax.jit(functions.init)()


def check(found):
    """Raises AssertionError where twice as many cost more than twice as much, noise aside."""
    for sweep in found:
        pairs = list(zip(sweep.counts, sweep.times))
        for (few, before), (many, after) in zip(pairs, pairs[1:]):
            growth = after.low / before.low
            cost = f"{sweep.what}: {few} to {many} {sweep.unit} cost {growth:.2f} times as much"
            assert growth <= NOISE * many / few, cost


def plot(found, path=PLOT):
    """Draws the cost of a call by count, beside the straight line through its first point, into `path`."""
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), constrained_layout=True)
    for axis, sweep in zip(axes, found):
        seconds = np.array(sweep.times)
        axis.fill_between(sweep.counts, seconds[:, 1], seconds[:, 2], alpha=0.2)
        axis.plot(sweep.counts, seconds[:, 0], "o-", label="measured")
        axis.plot(sweep.counts, seconds[0, 0] * np.array(sweep.counts) / sweep.counts[0], "k--", lw=0.8, label="linear")
        axis.set(xscale="log", yscale="log", title=sweep.what, xlabel=sweep.unit, ylabel="seconds a call")
        axis.set_xticks(sweep.counts, map(str, sweep.counts))
        axis.minorticks_off()
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(found):
    """The sweeps as a table: milliseconds of a call, and of one more."""
    lines = ["| what | count | ms a call | least .. most | ms for each |", "| --- | --- | --- | --- | --- |"]
    for sweep in found:
        for count, t in zip(sweep.counts, sweep.times):
            lines.append(f"| {sweep.what} | {count} {sweep.unit} | {1e3 * t.median:.1f} | {1e3 * t.low:.1f} .. "
                         f"{1e3 * t.high:.1f} | {1e3 * t.median / count:.2f} |")
    return "\n".join(lines)
