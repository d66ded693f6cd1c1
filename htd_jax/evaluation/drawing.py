"""Pictures of detections: boxes with readable labels on one image, pairs with ground truth, grids."""
import colorsys
import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 320  # pixels of the longer side of a drawn picture: labels on a smaller one cannot be read
THRESHOLD = .3  # score from which a detection is drawn and counted as a claim
SHEET = 12  # images on a sheet


def draw(image, boxes, labels, scores=None, names=None):
    """Boxes drawn on a copy of an image.

    Args:
      image: uint8 [H, W, 3] RGB.
      boxes: float [N, 4] x1 y1 x2 y2 in pixels of `image`; parts outside are cut off.
      labels: int [N]; decides the colour, and the text through `names`.
      scores: float [N] in 0..1, or None. The better ones lie on top.
      names: sequence of class names, or None for the plain number.

    Returns:
      PIL image, RGB. A small image is enlarged by a whole factor until its longer side has `SMALLEST` pixels.
    """
    factor = max(1, math.ceil(SMALLEST / max(image.shape[:2])))
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for i in order:
        _box(picture, boxes[i], colour(labels[i]))
    for i in order:  # after all boxes, so that no line crosses a text
        name = str(int(labels[i])) if names is None else names[labels[i]]
        _label(picture, boxes[i], name if scores is None else f"{name} {scores[i]:.2f}", colour(labels[i]))
    return picture


def beside(*panels, gap=8):
    """PIL images in a row, each under its caption: `beside((caption, picture), ...)`."""
    font = _font(max(picture.width for _, picture in panels), max(picture.height for _, picture in panels))
    top = _height(font) + gap
    width = sum(picture.width for _, picture in panels) + gap * (len(panels) - 1)
    sheet = Image.new("RGB", (width, top + max(picture.height for _, picture in panels)), "white")
    x = 0
    for caption, picture in panels:
        sheet.paste(picture, (x, top))
        ImageDraw.Draw(sheet).text((x + gap // 2, gap // 2), caption, "black", font)
        x += picture.width + gap
    return sheet


def grid(pictures, columns=None, cell=(640, 480), gap=8):
    """PIL images on one white sheet, each shrunk or enlarged to fit a cell (width, height in pixels).

    Without `columns` the sheet becomes about square. Raises ValueError where there is no picture.
    """
    if not pictures:
        raise ValueError("grid of no pictures")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell[0] + gap) - gap, rows * (cell[1] + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        fitted = fit(picture, *cell)
        x, y = (i % columns) * (cell[0] + gap), (i // columns) * (cell[1] + gap)
        sheet.paste(fitted, (x + (cell[0] - fitted.width) // 2, y + (cell[1] - fitted.height) // 2))
    return sheet


def write_sheet(path, dataset, detections):
    """Writes a grid of a data set's first images, with the detections of at least `THRESHOLD`.

    Args:
      path: where to; its suffix is the format.
      dataset: gives `categories`, `record(i)` and `image(i)`.
      detections: list over the rows of `dataset` of dicts of arrays, as `runner.collect` gives them.
    """
    names = [category.name for category in dataset.categories]
    pictures = [_claims(dataset.image(i), found, names) for i, found in enumerate(detections[:SHEET])]
    if pictures:
        grid(pictures, columns=4, cell=(448, 448)).save(path)


def _claims(image, found, names):
    shown = np.asarray(found["scores"]) >= THRESHOLD
    boxes, labels, scores = (np.asarray(found[name])[shown] for name in ("boxes", "labels", "scores"))
    return draw(image, boxes, labels, scores, names)


def fit(picture, width, height):
    """A PIL image resized, keeping its ratio, to the largest that fits into (width, height)."""
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def colour(label):
    """The colour of a class, (r, g, b) 0..255: neighbouring labels get hues far apart."""
    hue = (int(label) * 0.618034) % 1  # golden ratio: no two of the first hundreds coincide
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, (.9, .65)[int(label) // 8 % 2], .95))


def _box(picture, box, fill):
    """The outline of a box, cut to the picture (drawing far outside costs memory) and at least one pixel."""
    x = np.clip(box[[0, 2]], 0, picture.width - 1)
    y = np.clip(box[[1, 3]], 0, picture.height - 1)
    width = max(1, round(max(picture.size) / 400))
    ImageDraw.Draw(picture).rectangle((min(x), min(y), max(x), max(y)), outline=fill, width=width)


def _label(picture, box, text, fill):
    """A text on its class colour, above the box, or inside where there is no room above."""
    canvas, font = ImageDraw.Draw(picture), _font(*picture.size)
    width, height = math.ceil(canvas.textlength(text, font)) + 4, _height(font)
    x = min(max(0, box[0]), max(0, picture.width - width))
    y = box[1] - height if box[1] >= height else box[1]
    y = min(max(0, y), max(0, picture.height - height))
    canvas.rectangle((x, y, x + width, y + height), fill=fill)
    luminance = np.dot(fill, (.299, .587, .114))
    canvas.text((x + 2, y + 1), text, "black" if luminance > 128 else "white", font)


@functools.lru_cache(maxsize=64)  # reading the font costs more than drawing with it
def _font(width, height):
    return ImageFont.load_default(size=max(11, round(max(width, height) / 55)))


def _height(font):
    ascent, descent = font.getmetrics()
    return ascent + descent + 2
