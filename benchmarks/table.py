"""The rows that benchmarks give and the one table that shows them, in Markdown."""
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import NamedTuple

import jax

from benchmarks import yardsticks

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = ("what", "seconds", "least .. most", "images/s", "compile s", "peak memory", "GFLOP/s", "of peak",
           "yardstick", "its seconds", "times the yardstick", "bar")


class Row(NamedTuple):
    """One measurement. `times`, `yardstick_times`: `timing.Times`; `yardstick`: its name, '-' where there is none;
    `images` that a call processes (0: unknown); `memory` in bytes; `flops` of one call (0: unknown); `bar`: its aim."""

    what: str
    times: tuple
    images: int = 0
    compile_seconds: float = 0
    memory: int = 0
    flops: float = 0
    yardstick: str = "-"
    yardstick_times: tuple | None = None
    bar: str = ""


def markdown(rows, peak):
    """The table of `rows`; `peak`: floating-point operations a second of the device."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row, peak) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row, peak):
    seconds, other = row.times.median, row.yardstick_times
    rate = row.flops / seconds
    return (row.what, _seconds(seconds), f"{_seconds(row.times.low)} .. {_seconds(row.times.high)}",
            f"{row.images / seconds:.3g}" if row.images else "-", f"{row.compile_seconds:.1f}", _bytes(row.memory),
            f"{rate / 1e9:.0f}" if rate else "-", f"{100 * rate / peak:.0f} %" if rate else "-", row.yardstick,
            _seconds(other.median) if other else "-", f"{seconds / other.median:.2f}" if other else "-", row.bar or "-")


def _seconds(value):
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"


def _bytes(value):
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.0f} MiB"


def provenance(command):
    """Where the figures come from: commit, machine, load, versions, command."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{len(os.sched_getaffinity(0))} CPU cores ({_processor()}), {memory:.0f} GiB"
    if jax.default_backend() != "cpu":
        machine += f", {jax.devices()[0].device_kind}"
    packages = "jax", "jaxlib", "flax", "numpy", "torch", "torchvision"
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return "\n".join((f"- commit {_commit()}", f"- {machine}; load {os.getloadavg()[0]:.1f} at the start",
                      f"- Python {platform.python_version()}, {versions}", f"- `{command}`"))


def _processor():
    names = (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    return next(names, "unknown") if os.path.exists("/proc/cpuinfo") else platform.processor()


def _version(package):
    """A package's version, 'absent' where it is not there or, as torchvision beside another torch, cannot be used."""
    usable = {"torch": yardsticks.torch, "torchvision": yardsticks.torchvision}.get(package, lambda: True)()
    return importlib.metadata.version(package) if usable else "absent"


def _commit():
    git = lambda *words: subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "htd_jax", "benchmarks", "configs")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
