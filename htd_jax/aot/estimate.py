"""The time of a compiled program, from what its compiler says of each operation.

TPU: the compiler's own `estimated_cycles`, and for our Pallas kernels their schedules (`aot.kernels`). GPU: a roofline,
max(bytes / bandwidth, FLOPs / peak) and a launch for each kernel, which is a bound from below. A loop whose length
depends on data takes a stated length, or 1; of a conditional the longer branch counts.
"""
import collections
import math
from typing import NamedTuple

from ml_collections import ConfigDict

from htd_jax.aot.chips import Chip
from htd_jax.aot.hlo import Operation, Program, dimensions, size_in_bytes
from htd_jax.aot.kernels import kernel_seconds
from htd_jax.models.ba_loss import AT_ONCE
from htd_jax.models.detect import REGRESSED_AT_ONCE
from htd_jax.models.targets import MAX_ROI_POSITIVES

LIKELY_REGRESSED = 150  # RoIs of an image with a score that is output
LIKELY_BOXES = 8  # of an image
LAUNCH = 2e-6  # seconds of a GPU kernel
SHOWN = 40  # rows of the table
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier", "partition-id"}


class Row(NamedTuple):
    """One operation: seconds of all its runs, how often it runs, and where it comes from."""

    seconds: float
    times: int
    source: str


class Estimate(NamedTuple):
    """Seconds of the program, its rows, and the loops of data-dependent length with the length taken for each."""

    seconds: float
    rows: list[Row]
    loops: dict[str, int]

    @property
    def kernels(self) -> int:
        """Operations that run, each as often as it does."""
        return sum(row.times for row in self.rows)


def stated_lengths(config: ConfigDict, what: str) -> dict[str, int]:
    """Source function -> the length taken for its loops."""
    limits = config.train if what == "train" else config.test
    return {
        "ops/nms.py _take": math.ceil(limits.nms_pre / 256),  # blocks: every candidate of a level is looked at
        "ops/nms.py _resolve": 4,  # rounds until a block is settled
        "ops/matching.py assign_anchors": LIKELY_BOXES,
        "models/ba_loss.py _with_gradient": math.ceil(config.train.roi_samples * MAX_ROI_POSITIVES / AT_ONCE),
        "models/detect.py regress": math.ceil(LIKELY_REGRESSED / REGRESSED_AT_ONCE),
    }


def estimate(text: str, chip: Chip, lengths: dict[str, int]) -> Estimate:
    """The `Estimate` of the text of a compiled program on a chip."""
    return _Walk(Program(text), _cycles(chip) if chip.platform == "tpu" else _roofline(chip), lengths).whole()


def table(found: Estimate) -> str:
    """The most expensive source lines, in milliseconds."""
    by_source = collections.Counter()
    for row in found.rows:
        by_source[row.source] += row.seconds
    lines = [f"{seconds * 1e3:9.2f} ms  {source}" for source, seconds in by_source.most_common(SHOWN)]
    loops = [f"{length:9} runs taken for the loop at {source}" for source, length in found.loops.items()]
    return "\n".join([f"{found.seconds * 1e3:9.2f} ms  in all, {found.kernels} operations", *lines, *loops])


class _Walk:
    def __init__(self, program, cost, lengths):
        self.program, self.cost, self.lengths, self.loops = program, cost, lengths, {}

    def whole(self):
        rows = self.rows(self.program.entry, 1)
        return Estimate(sum(row.seconds for row in rows), rows, self.loops)

    def rows(self, computation, times):
        """The rows of a computation that runs so many times."""
        found, types = [], {}
        for operation in self.program.computations.get(computation, ()):
            types[operation.name] = operation.type
            found += self.operation(operation, types, times)
        return found

    def operation(self, operation: Operation, types, times):
        if operation.code == "while":
            return self.rows(operation.attribute(r"body=%?([\w.\-]+)"), times * self.length(operation))
        if operation.code == "conditional":
            return max((self.rows(name, times) for name in _branches(operation)), default=[],
                       key=lambda rows: sum(row.seconds for row in rows))
        inner = operation.code in ("call", "async-start") and operation.attribute(r"(?:to_apply|calls)=%?([\w.\-]+)")
        if inner in self.program.computations:
            return self.rows(inner, times)
        seconds = self.cost(operation, types)
        return [Row(seconds * times, times, self.program.source(operation))] if seconds else []

    def length(self, loop):
        known = self.program.trip_count(loop)
        if known is not None:
            return known
        source = self.program.source(loop)
        file, _, function = source.partition(" ")
        return self.loops.setdefault(source, self.lengths.get(f"{file.split(':')[0]} {function}", 1))


def _branches(operation):
    names = operation.attribute(r"branch_computations=\{([^}]*)\}")
    if names:
        return [name.strip().lstrip("%") for name in names.split(",")]
    branches = (operation.attribute(rf"{side}_computation=%?([\w.\-]+)") for side in ("true", "false"))
    return [name for name in branches if name]


def _cycles(chip):
    def seconds(operation, types):
        cycles = int(operation.attribute(r'"?estimated_cycles"?:"?(\d+)') or 0)
        return cycles / chip.clock or kernel_seconds(operation, types, chip)
    return seconds


def _roofline(chip):
    def seconds(operation, types):
        if operation.code in _FREE:
            return 0
        given = [types.get(name, "") for name in operation.operands]
        moved = size_in_bytes(operation.type) + sum(map(size_in_bytes, given))
        is_convolution = "__cudnn" in operation.line or operation.code == "convolution"
        work = _convolution_flops([*given[:2], operation.type]) if is_convolution else 0
        return max(moved / chip.bandwidth, work / chip.flops) + LAUNCH
    return seconds


def _convolution_flops(types):
    """Of a convolution or either of its gradients: the smallest of the three arrays is the kernel."""
    shapes = [dimensions(type_) for type_ in types if "[" in type_]
    kernel = min(shapes, key=math.prod, default=[])
    maps = [shape for shape in shapes if shape is not kernel]
    if not maps or any(len(shape) != 4 for shape in maps):
        return 0
    return 2 * min(math.prod(shape[:-1]) for shape in maps) * math.prod(kernel)
