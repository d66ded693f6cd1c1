"""Every image file looked at before training: its header, its end, and whether another has the same bytes."""
import collections
import concurrent.futures
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from htd_jax.data import images
from htd_jax.data.box_inspection import FAIL, OK, WARN, Finding, some
from htd_jax.data.content import Content
from htd_jax.errors import UserError

_THREADS = 16  # most of the time is spent waiting for the disk
_HEAD, _TAIL = 16384, 4096  # bytes that tell most files apart
_ENDS = b"\xff\xd9", b"IEND"  # of JPEG and PNG


class File(NamedTuple):
    """`fault` is a few words, "" for none; files of different `key` have different bytes."""

    fault: str
    remark: str
    key: tuple[int, bytes]


def look(content: Content, what: str) -> list[File]:
    """Looks at all files of a data set; on a terminal a bar named `what` shows how far it is. [] without files."""
    paths, sizes = content.paths or [], map(tuple, content.sizes.tolist())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        looked = pool.map(_look, paths, sizes)
        return list(tqdm(looked, what, len(paths), unit=" images", disable=None))


def faults(content: Content, files: list[File]) -> Iterator[Finding]:
    """Files that cannot be used as annotated, by what is wrong; one line where all can."""
    by_fault = collections.defaultdict(list)
    for row, file in enumerate(files):
        if file.fault:
            by_fault[file.fault].append(row)
    for fault, rows in by_fault.items():
        yield Finding(FAIL, f"{len(rows)} image files {fault}: {files[rows[0]].remark}"
                            + f"; also {some([content.names[k] for k in rows[1:]])}" * (len(rows) > 1), rows)
    if files and not by_fault:
        yield Finding(OK, f"all {len(files)} image files are there, whole by their headers and of the stated size")


def duplicates(content: Content, files: list[File]) -> Iterator[Finding]:
    """Files of one data set with the same bytes."""
    groups = [rows for rows in _groups(content.paths or [], files) if len({content.paths[k] for k in rows}) > 1]
    if groups:
        pairs = [f"{content.names[rows[0]]} = {content.names[rows[1]]}" for rows in groups]
        extra = sum(map(len, groups)) - len(groups)
        yield Finding(WARN, f"{extra} image files have the same bytes as another ({some(pairs)})",
                      [row for rows in groups for row in rows])


def shared(content: Content, files: list[File], other: Content, other_files: list[File]) -> Iterator[Finding]:
    """Files of validation (`content`) that training (`other`) has too, under whatever name."""
    count = len(files)
    groups = _groups([*(content.paths or ()), *(other.paths or ())], [*files, *other_files])
    pairs = [(rows[0], rows[-1] - count) for rows in groups if rows[0] < count <= rows[-1]]
    rows = [row for group in groups if group[-1] >= count for row in group if row < count]
    if pairs:
        named = [f"{content.names[a]} = {other.names[b]}" for a, b in pairs]
        yield Finding(WARN, f"{len(rows)} of {count} validation images are training images too ({some(named)}): "
                            "the AP will be too good", rows)


def _groups(paths: Sequence[pathlib.Path], files: list[File]) -> list[list[int]]:
    """Rows of files with equal bytes, two or more each, ascending. Only files with equal ends are read whole."""
    alike, equal = collections.defaultdict(list), collections.defaultdict(list)
    for row, file in enumerate(files):
        if file.key[0]:
            alike[file.key].append(row)
    rows = [row for group in alike.values() if len(group) > 1 for row in group]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for row, digest in zip(rows, pool.map(_digest, [paths[row] for row in rows])):
            equal[digest].append(row)
    return [group for group in equal.values() if len(group) > 1]


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _look(path, size):
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            length = file.seek(0, 2)
            file.seek(max(0, length - _TAIL))
            tail = file.read()
    except OSError as error:
        return File("cannot be opened", f"{path}: {error.strerror}", (0, b""))
    fault, remark = _fault(path, size, tail)
    return File(fault, remark, (length, hashlib.blake2b(head + tail, digest_size=16).digest()))


def _fault(path, size, tail):
    """What is wrong with a file, in a few words, and in a line; "" and "" for nothing."""
    try:
        images.check_header(path, size)
        if not any(end in tail for end in _ENDS):
            images.check_complete(path.read_bytes(), path)
    except UserError as error:
        stated = images.header_size(path)
        fault = "are empty" if not tail else "are no images" if stated is None else \
            "are of another size than annotated" if size not in (stated, stated[::-1]) else "are damaged"
        return fault, str(error)
    return "", ""
