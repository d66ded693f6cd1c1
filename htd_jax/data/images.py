"""Image files to arrays: decoding, orientation, resizing: with OpenCV, whose pixels are those of the original.

Decoding is by OpenCV because other decoders differ by a few grey levels, and so do the detections. What OpenCV
cannot read at all goes through Pillow.
"""
import io
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from htd_jax.errors import UserError

# OpenCV prints several lines about a broken file before it returns None; the UserError raised instead has one.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)  # OpenCV 4, OpenCV 5

# What OpenCV and Pillow read of photographs; of an animation the first picture.
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".avif",
              ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm")
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_EXIF_ORIENTATION = 0x0112
_BLACK = 16  # grey levels: what 12 bits in a file of 16 become, or shares 0..1


def read(path: str | os.PathLike, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file as RGB.

    Args:
      size: (height, width) in pixels that the annotation states, or None where there is none.
    Raises UserError: the file is missing, empty, truncated, no image, or of another size than stated.
    """
    return decode(read_bytes(path, "image"), path, size)


def read_bytes(path: str | os.PathLike, what: str) -> bytes:
    """The content of a file; UserError calls it the `what` file."""
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what} file {path} does not exist") from None
    except OSError as error:
        raise UserError(f"{what} file {path} cannot be read: {error.strerror}") from None


def decode(data: bytes, name: str | os.PathLike,
           size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the bytes of an image file; `name` stands for it in errors. Otherwise as `read`.

    Without `size` an EXIF orientation is applied, as by OpenCV and by every viewer. With it the orientation is the
    one that agrees with `size`, since boxes are in those pixels; where both agree (a half turn, a square) EXIF counts.
    """
    check_complete(data, name)
    image = _decode(data, name, upright=True)
    if size is None or image.shape[:2] == size:
        return image
    stored = _decode(data, name, upright=False)
    if stored.shape[:2] == size:
        return stored
    actual = f"{image.shape[1]} x {image.shape[0]} pixels (width x height)"
    raise UserError(f"image file {name} has {actual}, but its annotation says {size[1]} x {size[0]}: give the file "
                    "that was annotated, or correct the annotation")


def header_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(height, width) by the header, as after the EXIF orientation; None where Pillow does not know the format."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            transposed = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    except Exception:  # not found, no image, damaged: decoding says which
        return None
    return (width, height) if transposed else (height, width)


def check_header(path: str | os.PathLike, size: tuple[int, int]) -> None:
    """Raises UserError, as `read` would, as far as a header shows; an image that is not of 8 bits is decoded."""
    stated = header_size(path)
    if stated is None or size not in (stated, stated[::-1]) or _is_deep(path):
        read(path, size)


def check_complete(data: bytes, name: str | os.PathLike) -> None:
    """Raises UserError where the bytes are none, or a JPEG or PNG without its end; cheap, nothing is decoded."""
    if not data:
        raise UserError(f"image file {name} is empty")
    if not _complete(data):
        raise UserError(f"image file {name} is truncated: it ends before the image does")


def resized_shape(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after resizing to `scale` (long, short side) with the ratio kept, all in pixels.

    s = min(long / max(h, w), short / min(h, w)), then int(side * s + .5).
    """
    long, short = scale
    s = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * s + 0.5)), max(1, int(width * s + 0.5))


def resize(image: UInt8[np.ndarray, "H W 3"], shape: Sequence) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear on 8 bits, OpenCV's, to `shape` (height, width)."""
    if image.shape[:2] == tuple(shape):
        return image
    return cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _decode(data, name, upright):
    """RGB pixels, with any EXIF orientation applied (`upright`) or as stored."""
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        image = _decode_with_pillow(data, name, upright)
    else:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if image[::8, ::8].max() < _BLACK and image.max() < _BLACK and _is_deep(io.BytesIO(data)):
        raise UserError(f"image file {name} has more than 8 bits a value, but so low values that they become black "
                        f"(at most {image.max()} of 255): scale them to 0..255 and save it with 8 bits")
    return image


def _is_deep(file):
    """Whether values have more than 8 bits, by the header; False where Pillow does not know the format."""
    try:
        with Image.open(file) as image:
            return image.mode.startswith(("I", "F"))
    except Exception:
        return False


def _decode_with_pillow(data, name, upright):
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if upright:
            image = ImageOps.exif_transpose(image)
        return np.asarray(image.convert("RGB"))
    except Image.UnidentifiedImageError:
        raise UserError(f"image file {name} is not an image that OpenCV or Pillow can read") from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to
        raise UserError(f"image file {name} is truncated or damaged: {error}") from None


def _complete(data):
    """Whether a JPEG or PNG has its end; some versions of OpenCV fill what is missing with grey and say nothing."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9", _scan_start(data)) >= 0
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _has_all_chunks(data)
    return True


def _has_all_chunks(data):
    """Whether a PNG's chunks follow each other up to its end: for one that claims 4 GB OpenCV would make room."""
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return at + 8 <= len(data)


def _scan_start(data):
    """Offset of a JPEG's first scan. A thumbnail before it, in the EXIF segment, has an end marker of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
        elif data[at + 1] == 0xDA:
            return at
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data) if at >= len(data) else at
