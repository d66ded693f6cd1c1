"""Self-contained pages of the folder page/: styles, scripts, data and pictures in one file that needs no network."""
import base64
import html
import io
import json
import os
import pathlib
import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from htd_jax import paths

SIDE = 480  # pixels of the longer side of a picture
PICTURES, ROWS = 18_000_000, 26_000_000  # bytes of the page up to which images get a picture, and are listed at all

_FOLDER = pathlib.Path(__file__).with_name("page")


def write(path: str | os.PathLike, content: str, scripts: Iterable[str], data: dict[str, Any], **texts: str) -> None:
    """Writes a page.

    Args:
      content: its file in page/, which `page.html` surrounds.
      scripts: files in page/ that run in this order.
      data: what the scripts read; JSON without NaN.
      texts: `title`, `summary` and what else the content names; plain text, which is escaped here.
    """
    texts = {name: html.escape(text) for name, text in texts.items()}
    page = string.Template(_read("page.html")).substitute(
        texts, content=string.Template(_read(content)).substitute(texts), style=_read("page.css"), data=to_json(data),
        script="\n".join(map(_read, scripts)))
    paths.write(paths.of(path), page)


def to_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever the names in it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def within_budget(rows: Iterable[tuple[dict, Callable[[], dict]]]) -> Iterator[dict]:
    """Yields rows of a page until their bytes reach `ROWS`; up to `PICTURES` bytes they have a picture.

    Args:
      rows: (row, function that returns it with a picture and boxes), those worth a picture first.
    """
    spent = 0
    for plain, illustrated in rows:
        row = illustrated() if spent < PICTURES else plain
        spent += len(to_json(row)) + 1
        if spent > ROWS:
            return
        yield row


def jpeg(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """An image of at most `SIDE` pixels a side, as JPEG in base64."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    picture.save(buffer, "JPEG", quality=72)
    return base64.b64encode(buffer.getvalue()).decode()


def thousandths(box: np.ndarray, width: int, height: int) -> list[int]:
    """A box x, y, width, height in pixels, as whole thousandths of the image's width and height."""
    return np.rint(np.asarray(box) * 1000 / (width, height, width, height)).astype(int).tolist()


def _read(name):
    return (_FOLDER / name).read_text(encoding="utf-8")
