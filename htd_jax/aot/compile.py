"""Compile a program for a described accelerator and gather what its compiler says of it."""
import time

from ml_collections import ConfigDict

from htd_jax import mesh as mesh_lib
from htd_jax.aot import programs
from htd_jax.aot.chips import chip_of, described_devices
from htd_jax.aot.estimate import estimate, stated_lengths, table


def compile_for(config: ConfigDict, topology: str, what: str, shape: tuple[int, int]) -> dict:
    """Compiles `what` ('train' or 'detect') for `topology` ('v5e:2x2', 'h100:1') and images of `shape` (h, w).

    Returns what `python -m htd_jax.aot` prints as JSON, and `profile`, the estimate by source line as a text.
    """
    chip = chip_of(topology)
    lower, batch_size = {"train": (programs.lower_train, config.batch_size),
                         "detect": (programs.lower_detect, config.test.batch_size)}[what]
    lowered = lower(config, mesh_lib.make_mesh(described_devices(topology)), shape)
    start = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}  # XLA counts nothing of a GPU program that has Pallas kernels
    peak = memory.peak_memory_in_bytes
    facts = dict(what=what, topology=topology, image=[*shape], batch_size=batch_size, peak_bytes_per_device=peak,
                 flops=cost.get("flops"), bytes_accessed=cost.get("bytes accessed"), compile_seconds=round(seconds, 1),
                 fits=peak < chip.memory * 2**30, estimated_ms=None)
    if not chip.bandwidth:
        return facts | dict(profile=f"times are not estimated for {topology.split(':')[0]}")
    found = estimate(compiled.as_text(), chip, stated_lengths(config, what))
    return facts | dict(estimated_ms=round(found.seconds * 1e3, 1), loops=found.loops, kernels=found.kernels,
                        profile=table(found))
