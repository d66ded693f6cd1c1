"""Drawings of detections: boxes with readable labels on one image, pairs with ground truth, grids."""
import colorsys
import functools
import io
import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from htd_jax import paths
from htd_jax.data import Dataset

SMALLEST = 320  # pixels of the longer side of a drawn image: labels on a smaller one cannot be read
THRESHOLD = .3  # score from which a detection is drawn and counted as a claim
SHEET = 12  # images on a sheet

Rows = np.ndarray | Sequence


def draw(image: UInt8[np.ndarray, "H W 3"], boxes: Rows, labels: Rows, scores: Rows | None = None,
         names: Sequence[str] | dict[int, str] | None = None) -> Image.Image:
    """Boxes drawn on a copy of an image, which is enlarged by a whole factor where it has less than `SMALLEST` pixels.

    Args:
      boxes: [N, 4] x1 y1 x2 y2 in pixels of `image`; parts outside are cut off.
      labels: [N]; decide the colour, and the text through `names`.
      scores: [N] in 0..1. The better ones lie on top.
      names: class names; None for the plain number.
    """
    factor = max(1, math.ceil(SMALLEST / max(image.shape[:2])))
    drawn = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        _box(drawn, boxes[i], colour(labels[i]))
    for i in order:  # after all boxes, so that no line crosses a text
        name = str(int(labels[i])) if names is None else names[labels[i]]
        _label(drawn, boxes[i], name if scores is None else f"{name} {scores[i]:.2f}", colour(labels[i]))
    return drawn


def beside(*panels: tuple[str, Image.Image], gap: int = 8) -> Image.Image:
    """Images in a row, each under its caption."""
    widths, height = [image.width for _, image in panels], max(image.height for _, image in panels)
    font = _font(max(widths), height)
    top = _height(font) + gap
    sheet = Image.new("RGB", (sum(widths) + gap * (len(panels) - 1), top + height), "white")
    x = 0
    for caption, image in panels:
        sheet.paste(image, (x, top))
        ImageDraw.Draw(sheet).text((x + gap // 2, gap // 2), caption, "black", font)
        x += image.width + gap
    return sheet


def grid(images: Sequence[Image.Image], columns: int | None = None, cell: tuple[int, int] = (640, 480),
         gap: int = 8) -> Image.Image:
    """Images on one white sheet, each shrunk or enlarged to fit a cell (width, height in pixels).

    Without `columns` the sheet becomes about square. Raises ValueError where there is no image.
    """
    if not images:
        raise ValueError("grid of no images")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (cell[0] + gap) - gap, rows * (cell[1] + gap) - gap), "white")
    for i, image in enumerate(images):
        place = (i % columns) * (cell[0] + gap), (i // columns) * (cell[1] + gap)
        sheet.paste(ImageOps.pad(image, cell, Image.Resampling.LANCZOS, "white"), place)
    return sheet


def write_sheet(path: str | os.PathLike, dataset: Dataset, detections: list[dict[str, np.ndarray]]) -> None:
    """Writes a grid of a dataset's first images with those `detections` (of `runner.collect`) that reach `THRESHOLD`.

    The suffix of `path` is the format.
    """
    names = [category.name for category in dataset.categories]
    images = [_claims(dataset.image(i), found, names) for i, found in enumerate(detections[:SHEET])]
    if images:
        write(paths.of(path), grid(images, columns=4, cell=(448, 448)))


def write(path: paths.Path, picture: Image.Image, **options: int) -> None:
    """Writes a picture; the suffix of `path` is the format. `options` are Pillow's."""
    buffer = io.BytesIO()
    picture.save(buffer, Image.registered_extensions()[path.suffix.lower()], **options)
    paths.write(path, buffer.getvalue())


def samples(dataset: Dataset, detections: list[dict[str, np.ndarray]], count: int = 6) -> dict[str, Image.Image]:
    """{name of the file: its ground truth beside its detections of at least `THRESHOLD`} of images from all over a set.

    `detections`: of every image, as `runner.collect` gives them.
    """
    names, pictures = [category.name for category in dataset.categories], {}
    for i in range(0, len(dataset), max(1, -(-len(dataset) // count))):
        record, image = dataset.record(i), dataset.image(i)
        truth = draw(image, record.boxes, record.labels, None, names)
        pictures[record.name] = beside(("ground truth", truth), ("detections", _claims(image, detections[i], names)))
    return pictures


def _claims(image, found, names):
    shown = np.asarray(found["scores"]) >= THRESHOLD
    boxes, labels, scores = (np.asarray(found[name])[shown] for name in ("boxes", "labels", "scores"))
    return draw(image, boxes, labels, scores, names)


def colour(label: int | np.integer) -> tuple[int, int, int]:
    """The colour of a class, (r, g, b) 0..255: neighbouring labels get hues far apart."""
    hue = (int(label) * 0.618034) % 1  # golden ratio: no two of the first hundreds coincide
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, (.9, .65)[int(label) // 8 % 2], .95))


def _box(image, box, fill):
    """The outline of a box, cut to the image (drawing far outside takes memory) and at least one pixel."""
    x = np.clip(box[[0, 2]], 0, image.width - 1)
    y = np.clip(box[[1, 3]], 0, image.height - 1)
    width = max(1, round(max(image.size) / 400))
    ImageDraw.Draw(image).rectangle((min(x), min(y), max(x), max(y)), outline=fill, width=width)


def _label(image, box, text, fill):
    """A text on its class colour, above the box, or inside where there is no room above."""
    canvas, font = ImageDraw.Draw(image), _font(*image.size)
    text = " ".join(text.split())  # Pillow measures no text of several lines
    width, height = math.ceil(canvas.textlength(text, font)) + 4, _height(font)
    x = min(max(0, box[0]), max(0, image.width - width))
    y = box[1] - height if box[1] >= height else box[1]
    y = min(max(0, y), max(0, image.height - height))
    canvas.rectangle((x, y, x + width, y + height), fill=fill)
    luminance = np.dot(fill, (.299, .587, .114))
    canvas.text((x + 2, y + 1), text, "black" if luminance > 128 else "white", font)


@functools.lru_cache(maxsize=64)  # reading the font takes longer than drawing with it
def _font(width, height):
    return ImageFont.load_default(size=max(11, round(max(width, height) / 55)))


def _height(font):
    ascent, descent = font.getmetrics()
    return ascent + descent + 2
