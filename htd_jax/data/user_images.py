"""What a user hands over, as a dataset: paths, folders, arrays, PIL images."""
import logging
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from htd_jax.data import images
from htd_jax.data.records import Record
from htd_jax.errors import UserError

_SHOWN = 3  # names of what is left out of a folder

log = logging.getLogger(__name__)
_NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class UserImages:
    """Images from wherever they are, decoded when asked for.

    Attributes:
      single: whether one image was given, not a folder or list.
      names: of each, for messages: its path, or "array 3".
      errors: index -> UserError, of those that cannot be used. Headers are read at once; damage further inside is
        added by `image`.
    """

    def __init__(self, x: Any):
        """`x`: an image, a folder, or a list of images and folders; an image is a path, a PIL image, or an array
        uint8 [H, W, 3] RGB or [H, W]. UserError where it is something else, or a folder without images."""
        self.single = not isinstance(x, (list, tuple)) and not _is_folder(x)
        self._items = [item for part in (x if isinstance(x, (list, tuple)) else [x]) for item in _expanded(part)]
        self.names = [_name(item, i) for i, item in enumerate(self._items)]
        self.errors, self._sizes = {}, {}
        for i, item in enumerate(self._items):
            try:
                self._sizes[i] = _size(item, self.names[i])
            except UserError as error:
                self.errors[i] = error

    def __len__(self) -> int:
        return len(self._items)

    def image(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        """RGB; raises UserError where image i cannot be read."""
        item, size = self._items[i], self._sizes.get(i)
        if i in self.errors:
            raise self.errors[i]
        try:
            array = images.read(item) if isinstance(item, pathlib.Path) else _rgb(item)
            if array.shape[:2] != size:
                raise UserError(f"image file {item} is damaged: its header says {size.width} x {size.height} pixels, "
                                f"but it has {array.shape[1]} x {array.shape[0]}")
        except UserError as error:
            self.errors[i] = error
            raise
        return array

    def readable(self) -> "Readable":
        """The images without error, as the pipeline reads a dataset."""
        return Readable(self, sorted(self._sizes))

    def size(self, i: int) -> Size:
        return self._sizes[i]


class Readable:
    """Some of the images. One that turns out damaged becomes a black image, so that the others are processed."""

    def __init__(self, user_images: UserImages, rows: list[int]):
        self._images, self.rows = user_images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, i: int) -> Record:
        row = self.rows[i]
        return Record(row, self._images.names[row], *self._images.size(row), *_NO_BOXES)

    def image(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return self._images.image(self.rows[i])
        except UserError:
            return np.zeros((*self._images.size(self.rows[i]), 3), np.uint8)


def _is_folder(x):
    return isinstance(x, (str, os.PathLike)) and os.path.isdir(os.path.expanduser(x))


def _expanded(item):
    """A folder's images by name; anything else as it is, paths as pathlib.Path."""
    if not isinstance(item, (str, os.PathLike)):
        return [item]
    path = pathlib.Path(os.path.expanduser(item))
    if not path.is_dir():
        return [path]
    entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))  # "._IMG.jpg" is a Mac's, no image
    found = [p for p in entries if p.suffix.lower() in images.EXTENSIONS and p.is_file()]
    if not found:
        raise UserError(f"folder {item} has no image; looked for {', '.join(images.EXTENSIONS)}"
                        + _left_out(entries, found))
    if left_out := _left_out(entries, found):
        log.warning("folder %s%s", item, left_out)
    return found


def _left_out(entries, found):
    """"; left out: 2 folders, 1 other file: raw/, sub/, notes.txt", or ''."""
    rest = sorted(set(entries) - set(found), key=lambda p: (not p.is_dir(), p))
    folders = sum(p.is_dir() for p in rest)
    numbers = {"folder": folders, "other file": len(rest) - folders}
    counts = [f"{n} {what}{'s' * (n > 1)}" for what, n in numbers.items() if n]
    names = [p.name + "/" * p.is_dir() for p in rest[:_SHOWN]] + ["..."] * (len(rest) > _SHOWN)
    return f"; left out: {', '.join(counts)}: {', '.join(names)}" if rest else ""


def _name(item, i):
    if isinstance(item, pathlib.Path):
        return str(item)
    return f"{'PIL image' if isinstance(item, Image.Image) else 'array'} {i}"


def _size(item, name):
    if isinstance(item, pathlib.Path):
        return file_size(item)
    if isinstance(item, Image.Image):
        return Size(item.height, item.width)
    if not hasattr(item, "dtype"):
        raise UserError(f"cannot detect in a {type(item).__name__}: give a path, a PIL image, an array uint8 "
                        "[H, W, 3] RGB or [H, W], or a list of them")
    fits = len(item.shape) == 2 or (len(item.shape) == 3 and item.shape[2] == 3)
    if item.dtype != np.uint8 or not fits or 0 in item.shape:
        raise UserError(f"{name} is {item.dtype} {list(item.shape)}; give uint8 [H, W, 3] RGB or [H, W] grey")
    return Size(*map(int, item.shape[:2]))


def file_size(path: pathlib.Path) -> Size:
    """From the header, as it is after the EXIF orientation; from the pixels where Pillow does not know the format."""
    return Size(*(images.header_size(path) or images.read(path).shape[:2]))


def _rgb(item):
    if isinstance(item, Image.Image):
        return np.asarray(item.convert("RGB"))
    array = np.asarray(item)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
