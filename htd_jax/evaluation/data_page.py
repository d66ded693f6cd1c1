"""A page of samples of the training and validation images with their boxes, and what an inspection found."""
import os
from collections.abc import Iterator

from htd_jax.data.box_inspection import FAIL, OK, WARN
from htd_jax.data.inspection import Inspected
from htd_jax.errors import UserError
from htd_jax.evaluation import pages

SAMPLES = 200  # images of each split; those that a finding names come first
_NAMED = 20  # images of one finding
_STATES = (FAIL, WARN, OK)


def write(path: str | os.PathLike, inspected: dict[str, Inspected]) -> None:
    """Writes the page of what `inspection.inspect` returned."""
    names = next(([name for _, name in each.content.categories] for each in inspected.values()), [])
    rows = [row for split, each in inspected.items() for row in _rows(split, each)]
    findings = sorted(((split, state, remark) for split, each in inspected.items()
                       for state, remark, _ in each.findings), key=lambda finding: _STATES.index(finding[1]))
    data = dict(names=names, findings=findings, detects=False, kinds=(), rows=list(pages.within_budget(rows)))
    counts = ", ".join(f"{split}: {len(each.content.names)} images, {len(each.content.boxes)} boxes"
                       for split, each in inspected.items())
    pages.write(path, "data.html", ("elements.js", "data.js", "gallery.js"), data, title="Data", summary=counts)


def _rows(split, inspected) -> Iterator[tuple]:
    """Pairs for `pages.within_budget`."""
    content, _, findings = inspected
    chosen = {}
    for _, remark, rows in findings:
        for row in rows[:_NAMED]:
            chosen.setdefault(int(row), remark)
    for row in range(0, len(content.names), max(1, -(-len(content.names) // SAMPLES))):
        chosen.setdefault(row, "")
    for row, remark in list(chosen.items())[:2 * SAMPLES]:
        yield _pair(content, row, f"{split}. {remark}" if remark else split)


def _pair(content, row, note):
    own = [k for k in (content.image == row).nonzero()[0].tolist() if content.label[k] >= 0]
    plain = dict(name=content.names[row], note=note, detections=[],
                 objects=[[int(content.label[k]), int(content.crowd[k])] for k in own])

    def illustrated():
        try:
            image = content.read(row)
        except UserError as error:
            return dict(plain, note=note if str(error) in note else f"{note} ({error})")
        height, width = image.shape[:2]
        box = lambda k: pages.thousandths(content.boxes[k], width, height)
        known = [k for k in own if (content.boxes[k] == content.boxes[k]).all()]  # not NaN
        objects = [[int(content.label[k]), int(content.crowd[k]), *box(k)] for k in known]
        return dict(plain, objects=objects, picture=pages.jpeg(image))

    return plain, illustrated
