"""The time of the product's own TPU kernels, of which the compiler estimates nothing.

A kernel runs at its schedule: bundles of each loop in the machine code that the compiler makes of it for a v5e, one a
cycle. How often the loops run depends on data and is stated here.
"""
from typing import NamedTuple

from htd_jax.aot.chips import Chip
from htd_jax.aot.hlo import Operation, size_in_bytes
from htd_jax.ops.tpu.atlas import INTS

# Of an item of RoIAlign, a RoI on a level. Annotated boxes of COCO at 800x1333: 3.3 tiles in 1.2 strips on a RoI's own
# level, 8 tiles on each other level; of these items about half have nothing to pool.
TILES, STRIPS = 4.5, 1.3


class Schedule(NamedTuple):
    """Cycles of an item, of a strip of its tiles, of a tile, and of a cell of 128 channels that is cleared and sent."""

    item: int
    strip: int
    tile: int
    cell: float


SCHEDULES = {"roi_align_tiles": Schedule(64, 73, 150, 0), "roi_align_tiles_backward": Schedule(62, 86, 191, 0.25)}


def kernel_seconds(operation: Operation, types: dict[str, str], chip: Chip) -> float:
    """Seconds of a kernel of `SCHEDULES`: its loops and, one after the other, the transfer of the pyramid; else 0."""
    schedule = SCHEDULES.get(operation.name.split(".")[0])
    if operation.code != "custom-call" or schedule is None:
        return 0.0
    given = [types.get(name, "") for name in operation.operands]
    items = size_in_bytes(given[0]) // 4 // INTS
    cycles = items * (schedule.item + STRIPS * schedule.strip + TILES * schedule.tile)
    backward = schedule.cell > 0
    pyramid = size_in_bytes(operation.type) if backward else sum(map(size_in_bytes, given[2:]))
    cycles += schedule.cell * pyramid / 2 / 128
    return cycles / chip.clock + pyramid / chip.bandwidth
