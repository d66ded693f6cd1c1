"""One self-contained page, report.html: the numbers, the classes, the scores, the best and worst images."""
import base64
import html
import io
import json
import os
import pathlib
import string
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8
from ml_collections import ConfigDict
from pycocotools import mask

from htd_jax.data import Dataset, Record
from htd_jax.evaluation import coco, drawing

SHOWN = 6  # images of each kind
_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


class Tally(NamedTuple):
    """Of one image: its objects without crowds; the claims (detections of at least `THRESHOLD`) right and wrong."""

    objects: int
    right: int
    wrong: int


def write(path: str | os.PathLike, metrics: dict, dataset: Dataset, detections: list[dict[str, np.ndarray]],
          config: ConfigDict, command: str = "") -> None:
    """Writes the page.

    Args:
      metrics: what `coco.score` returned.
      detections: what `runner.collect` returned; best first.
      config, command: shown as they are.
    """
    records = [dataset.record(i) for i in range(len(detections))]
    hits = [match(found, record) for found, record in zip(detections, records)]
    tallies = [_tally(*row) for row in zip(detections, records, hits)]
    worst, best = _extremes(tallies)
    names = [category.name for category in dataset.categories]
    page = string.Template(_TEMPLATE.read_text()).substitute(
        title=f"AP {_number(metrics['AP'])} on {len(detections)} images",
        images=len(detections), detections=sum(len(found["scores"]) for found in detections),
        numbers=_numbers(metrics), classes=_classes(metrics, names, detections, records),
        histogram=_histogram(detections, hits), threshold=drawing.THRESHOLD,
        worst="".join(_figure(dataset.image(i), detections[i], records[i], tallies[i], names) for i in worst),
        best="".join(_figure(dataset.image(i), detections[i], records[i], tallies[i], names) for i in best),
        command=html.escape(command), config=html.escape(json.dumps(config.to_dict(), indent=1, default=str)))
    pathlib.Path(path).write_text(page, encoding="utf-8")


def match(found: dict[str, np.ndarray], record: Record, iou: float = .5) -> Int8[np.ndarray, " N"]:
    """Greedy matching of one image's detections, best first, to its objects of the same class.

    Returns 1 where a detection takes an object at IoU >= `iou`, -1 where it lies on a crowd of its class (neither right
    nor wrong), else 0.
    """
    result = np.zeros(len(found["scores"]), np.int8)
    if not len(result) or not len(record.boxes):
        return result
    overlap = mask.iou(_xywh(found["boxes"]), _xywh(record.boxes), record.crowd.astype(np.uint8).tolist())
    overlap = np.where(found["labels"][:, None] == record.labels[None], overlap, 0)
    free = ~record.crowd
    for i, row in enumerate(overlap):
        best = int(np.argmax(np.where(free, row, -1)))
        if free[best] and row[best] >= iou:
            result[i], free[best] = 1, False
        elif (row[record.crowd] >= iou).any():
            result[i] = -1
    return result


def _xywh(boxes):
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _tally(found, record, hit):
    claimed = hit[found["scores"] >= drawing.THRESHOLD]
    return Tally(int((~record.crowd).sum()), int((claimed == 1).sum()), int((claimed == 0).sum()))


def _extremes(tallies):
    """Rows of the worst and of the best images; among equals the one with more objects tells more."""
    ranked = [(t.right / (t.objects + t.wrong), t.objects, i) for i, t in enumerate(tallies) if t.objects + t.wrong]
    best = [i for share, _, i in sorted(ranked, key=lambda r: (-r[0], -r[1])) if share > 0][:SHOWN]
    worst = [i for share, _, i in sorted(ranked, key=lambda r: (r[0], -r[1])) if share < 1 and i not in best]
    return worst[:SHOWN], best


def _figure(image, found, record, tally, names):
    boxes, labels, scores = (found[key][found["scores"] >= drawing.THRESHOLD] for key in ("boxes", "labels", "scores"))
    panels = drawing.beside(("ground truth", drawing.draw(image, record.boxes, record.labels, None, names)),
                            ("detections", drawing.draw(image, boxes, labels, scores, names)))
    panels.thumbnail((1000, 1000))
    caption = html.escape(f"{record.name}: {tally.right} of {tally.objects} found, {tally.wrong} false")
    return f'<figure><img alt="" src="{_jpeg(panels)}"><figcaption>{caption}</figcaption></figure>\n'


def _jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value):
    return "&ndash;" if value < 0 else f"{value:.3f}"


def _numbers(metrics):
    rows = (coco.METRICS[:6], coco.METRICS[6:])
    return "".join("<tr>" + "".join(f"<th>{name}</th>" for name in row) + "</tr><tr>"
                   + "".join(f"<td>{_number(metrics[name])}</td>" for name in row) + "</tr>" for row in rows)


def _classes(metrics, names, detections, records):
    count = lambda labels: np.bincount(np.concatenate([np.zeros(0, int), *labels]).astype(int), minlength=len(names))
    objects = count(record.labels[~record.crowd] for record in records)
    found = count(d["labels"] for d in detections)
    return "".join(f'<tr><td>{html.escape(str(name))}</td><td data-value="{ap}">{_number(ap)}</td>'
                   f"<td>{objects[i]}</td><td>{found[i]}</td></tr>\n"
                   for i, (name, ap) in enumerate(metrics["per_class"].items()))


def _histogram(detections, hits, bins=20, width=800, height=160):
    """Inline SVG: for each score range all detections, and in front of them the hits."""
    scores = np.concatenate([np.zeros(0), *(d["scores"] for d in detections)])
    hit = np.concatenate([np.zeros(0), *hits]) == 1
    every, right = (np.histogram(s, bins, (0, 1))[0] for s in (scores, scores[hit]))
    top, step, parts = max(1, every.max()) ** .5, width / bins, []
    for i in range(bins):
        for count, name in ((every[i], "other"), (right[i], "hit")):
            bar = count ** .5 / top * height
            parts.append(f'<rect class="{name}" x="{i * step + 1:.0f}" y="{height + 15 - bar:.1f}" '
                         f'width="{step - 2:.0f}" height="{bar:.1f}"/>')
        parts.append(f'<text x="{i * step + 2:.0f}" y="{height + 12 - every[i] ** .5 / top * height:.1f}">'
                     f'{every[i] or ""}</text><text x="{i * step:.0f}" y="{height + 30}">{i / bins:.2f}</text>')
    return f'<svg viewBox="0 0 {width} {height + 36}" width="100%">{"".join(parts)}</svg>'
