"""A compiled program's text: its computations, the loops in them, and the source line behind every operation."""
import re
from typing import NamedTuple

_BYTES = dict(pred=1, s8=1, u8=1, bf16=2, f16=2, s16=2, u16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8)


class Operation(NamedTuple):
    """One line of a computation: result type, operation, names of its operands, and the whole line."""

    name: str
    type: str
    code: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` where the line has it."""
        found = re.search(pattern, self.line)
        return found and found[1]


class Program:
    """`computations`: {name: operations}, and the name of the `entry`."""

    def __init__(self, text: str):
        self.computations, self.entry, current = {}, None, None
        for line in text.splitlines():
            opened = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\([^{]*)?.*\{\s*$", line)
            if opened and not line.startswith(" "):
                current = self.computations.setdefault(opened[2], [])
                self.entry = opened[2] if opened[1] else self.entry
            elif current is not None and " = " in line:
                current.append(_operation(line.strip()))
        self._files, self._functions, self._locations, self._frames = (
            _table(text, title) for title in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"))

    def source(self, operation: Operation) -> str:
        """'ops/nms.py:60 resolve': the innermost frame within the package, '?' where there is none."""
        number = int(operation.attribute(r"stack_frame_id=(\d+)") or 0)
        while number in self._frames:
            frame = _numbers(self._frames[number])
            location = _numbers(self._locations[frame["file_location_id"]])
            _, within, file = self._files[location["file_name_id"]].strip('"').partition("/htd_jax/")
            if within and not file.startswith("aot/"):
                function = self._functions[location["function_name_id"]].strip('"').split(".")[-1]
                return f"{file}:{location['line']} {function}"
            parent = frame.get("parent_frame_id", 0) - 1
            number = parent if parent < number else 0
        return "?"

    def trip_count(self, loop: Operation) -> int | None:
        """How often a `while` runs, where the program says so."""
        if known := loop.attribute(r'known_trip_count"?:\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), ())
        constants = [op.attribute(r"constant\((\d+)\)") for op in condition if op.type.startswith("s32[]")]
        constants = [int(value) for value in constants if value]
        counts = bool(condition) and "direction=LT" in condition[-1].line and len(condition) <= 5
        return constants[0] if counts and len(constants) == 1 else None


def dimensions(type_: str) -> list[int]:
    """The sides of the first array in a type."""
    return [int(side) for side in re.search(r"\[([\d,]*)\]", type_)[1].split(",") if side]


def size_in_bytes(type_: str) -> int:
    """Of all arrays in a type."""
    total = 0
    for kind, sides in re.findall(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]", type_):
        count = _BYTES.get(kind, 4)
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count
    return total


def _operation(line):
    name, rest = re.match(r"(?:ROOT )?%?([\w.\-]+) = (.*)", line).groups()
    code = re.search(r"\s([a-z][\w\-]*)\(", f" {rest}")
    inside = rest[code.end() - 1:].split("), ")[0] if code else ""
    return Operation(name, rest[:max(0, code.start() - 1)] if code else rest, code[1] if code else "?",
                     tuple(re.findall(r"%([\w.\-]+)", inside)), line)


def _table(text, title):
    rows = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.M)
    return {int(row.split(" ", 1)[0]): row.split(" ", 1)[1] for row in rows[1].splitlines()} if rows else {}


def _numbers(row):
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}
