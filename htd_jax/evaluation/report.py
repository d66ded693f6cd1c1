"""One self-contained page, report.html: the numbers, the classes, the scores, the best and worst images."""
import base64
import html
import io
import json
import pathlib
import string

import numpy as np
from pycocotools import mask

from htd_jax.evaluation import coco, drawing

SHOWN = 6  # images of each kind
_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


def write(path, metrics, dataset, detections, config, command=""):
    """Writes the page.

    Args:
      path: where to.
      metrics: what `coco.score` gave.
      dataset: gives `categories`, `record(i)` and `image(i)`.
      detections: list over the rows of `dataset` of dicts `boxes` [N, 4] x1 y1 x2 y2 in original
        pixels, `scores` [N], `labels` [N]; best first.
      config: shown as it is.
      command: the command line that led here.
    """
    records = [dataset.record(i) for i in range(len(detections))]
    hits = [match(found, record) for found, record in zip(detections, records)]
    worst, best = _extremes(detections, records, hits)
    names = [category.name for category in dataset.categories]
    page = string.Template(_TEMPLATE.read_text()).substitute(
        title=f"AP {_number(metrics['AP'])} on {len(detections)} images",
        images=len(detections), detections=sum(len(found["scores"]) for found in detections),
        numbers=_numbers(metrics), classes=_classes(metrics, names, detections, records),
        histogram=_histogram(detections, hits), threshold=drawing.THRESHOLD,
        worst="".join(_figure(dataset, i, detections[i], records[i], hits[i], names) for i in worst),
        best="".join(_figure(dataset, i, detections[i], records[i], hits[i], names) for i in best),
        command=html.escape(command), config=html.escape(json.dumps(config.to_dict(), indent=1, default=str)))
    pathlib.Path(path).write_text(page, encoding="utf-8")


def match(found, record, iou=.5):
    """Greedy matching of one image's detections, best first, to its objects of the same class.

    Returns int8 [N]: 1 where a detection takes an object at IoU >= `iou`, -1 where it lies on a crowd of
    its class (neither right nor wrong), else 0.
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


def _extremes(detections, records, hits):
    """Rows of the worst and of the best images; among equals the one with more objects tells more."""
    ranked = []
    for i, (found, record, hit) in enumerate(zip(detections, records, hits)):
        claimed = found["scores"] >= drawing.THRESHOLD
        objects, right = int((~record.crowd).sum()), int((hit[claimed] == 1).sum())
        total = objects + int((hit[claimed] == 0).sum())
        if total:
            ranked.append((right / total, objects, i))
    best = [i for share, _, i in sorted(ranked, key=lambda r: (-r[0], -r[1])) if share > 0][:SHOWN]
    worst = [i for share, _, i in sorted(ranked, key=lambda r: (r[0], -r[1])) if share < 1 and i not in best]
    return worst[:SHOWN], best


def _figure(dataset, i, found, record, hit, names):
    image, claimed = dataset.image(i), found["scores"] >= drawing.THRESHOLD
    objects, right = int((~record.crowd).sum()), int((hit[claimed] == 1).sum())
    truth = drawing.draw(image, record.boxes, record.labels, None, names)
    drawn = drawing.draw(image, found["boxes"][claimed], found["labels"][claimed], found["scores"][claimed], names)
    picture = drawing.beside(("ground truth", truth), ("detections", drawn))
    picture = drawing.fit(picture, 1000, 1000) if max(picture.size) > 1000 else picture
    caption = f"{record.name}: {right} of {objects} found, {int((hit[claimed] == 0).sum())} false"
    return f'<figure><img alt="" src="{_jpeg(picture)}"><figcaption>{html.escape(caption)}</figcaption></figure>\n'


def _jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value):
    return "&ndash;" if value < 0 else f"{value:.3f}"


def _numbers(metrics):
    rows = (coco.METRICS[:6], coco.METRICS[6:])
    return "".join("<tr>" + "".join(f"<th>{name}</th>" for name in row) + "</tr><tr>"
                   + "".join(f"<td>{_number(metrics[name])}</td>" for name in row) + "</tr>" for row in rows)


def _classes(metrics, names, detections, records):
    labels = [record.labels[~record.crowd] for record in records]
    objects = np.bincount(np.concatenate([*labels, np.zeros(0, int)]).astype(int), minlength=len(names))
    found = np.bincount(np.concatenate([*(d["labels"] for d in detections), np.zeros(0, int)]).astype(int),
                        minlength=len(names))
    return "".join(f'<tr><td>{html.escape(str(name))}</td><td data-value="{ap}">{_number(ap)}</td>'
                   f"<td>{objects[i]}</td><td>{found[i]}</td></tr>\n"
                   for i, (name, ap) in enumerate(metrics["per_class"].items()))


def _histogram(detections, hits, bins=20, width=800, height=160):
    """Inline SVG: for each score range all detections, and in front of them the hits."""
    scores = np.concatenate([*(d["scores"] for d in detections), np.zeros(0)])
    hit = np.concatenate([*hits, np.zeros(0, np.int8)]) == 1
    every, right = (np.histogram(s, bins, (0, 1))[0] for s in (scores, scores[hit]))
    top, step, parts = max(1, every.max()) ** .5, width / bins, []
    for i in range(bins):
        for count, kind in ((every[i], "other"), (right[i], "hit")):
            bar = count ** .5 / top * height
            parts.append(f'<rect class="{kind}" x="{i * step + 1:.0f}" y="{height + 15 - bar:.1f}" '
                         f'width="{step - 2:.0f}" height="{bar:.1f}"/>')
        parts.append(f'<text x="{i * step + 2:.0f}" y="{height + 12 - every[i] ** .5 / top * height:.1f}">'
                     f'{every[i] or ""}</text><text x="{i * step:.0f}" y="{height + 30}">{i / bins:.2f}</text>')
    return f'<svg viewBox="0 0 {width} {height + 36}" width="100%">{"".join(parts)}</svg>'
