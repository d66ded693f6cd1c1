"""Every box and class of a data set looked at before training: what is wrong, what is odd, and what there is.

What is refused later is found here too, but all of it at once, with counts and examples.
"""
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from htd_jax.data.content import Content

OK, WARN, FAIL = "ok", "warn", "fail"
FEW = 10  # boxes, below which a class can hardly be learned
_BEYOND = 2  # pixels that a sloppy box may reach beyond its image
_EXAMPLES = 3


class Finding(NamedTuple):
    """What was found: `state` is ok, warn or fail; `rows` are the images concerned."""

    state: str
    remark: str
    rows: Sequence[int] = ()


def entries(content: Content) -> Iterator[Finding]:
    """Ids and names that occur twice or nowhere, and boxes that are none."""
    numbered = [i for i in content.annotation_ids if i is not None]
    yield from _twice(FAIL, "images have the id of an earlier one", content.ids)
    yield from _twice(FAIL, "categories have the id of an earlier one", [i for i, _ in content.categories])
    yield from _twice(WARN, "categories have the name of an earlier one", [name for _, name in content.categories])
    yield from _twice(WARN, "images are of a file that is listed before", content.names)
    yield from _twice(WARN, "annotations have the id of an earlier one", numbered)
    yield from _boxes(content, FAIL, content.label < 0, "of a category that is not listed")
    yield from _boxes(content, WARN, content.image < 0, "of an image that is not listed; they are not used")
    yield from _boxes(content, FAIL, np.isnan(content.boxes[:, 0]), "that are not four finite numbers")


def boxes(content: Content) -> Iterator[Finding]:
    """Boxes that lie outside, are empty, too small, doubled, or in other units than pixels."""
    sound, sizes = _sound(content), _sizes(content)
    start, extent = content.boxes[:, :2], content.boxes[:, 2:]
    empty, tiny = (extent <= 0).any(1), (extent < 1).any(1)
    outside = ~empty & ((start + extent <= 0) | (start >= sizes)).any(1)
    beyond = ~empty & ~outside & ((start < -_BEYOND) | (start + extent > sizes + _BEYOND)).any(1)
    yield from _units(content)
    yield from _boxes(content, WARN, sound & empty, "without area; training leaves them out")
    yield from _boxes(content, WARN, sound & ~empty & tiny, "of less than a pixel; training leaves them out")
    yield from _boxes(content, WARN, sound & outside, "outside their images; training leaves them out")
    yield from _boxes(content, WARN, sound & beyond, f"more than {_BEYOND} pixels beyond the edge of their images")
    yield from _boxes(content, WARN, sound & _doubled(content), "the same as another of their image and class")
    yield from _boxes(content, OK, sound & content.crowd, "around crowds (iscrowd); training leaves them out")


def _units(content):
    """Boxes that are corners, or shares of the image, by what the majority looks like."""
    values, sizes = content.boxes[_sound(content)], _sizes(content)[_sound(content)]
    start, last, limit = values[:, :2], values[:, 2:], sizes + _BEYOND
    beyond = (start + last > limit).any(1)
    if len(values) and beyond.mean() >= .5 and ((last > start) & (last <= limit)).all():
        yield Finding(FAIL, f"the boxes look like x1, y1, x2, y2: as x, y, w, h {beyond.sum()} of {len(values)} reach "
                            "beyond their images, as corners none; subtract x1 and y1 from the last two")
    shares = ((values >= 0) & (values <= 1)).all(1) & (last > 0).all(1)
    if len(values) and shares.mean() >= .5:
        yield Finding(FAIL, f"{shares.sum()} of {len(values)} boxes look like shares of the image (0 to 1); multiply "
                            "them by its width and height")


def classes(content: Content) -> Iterator[Finding]:
    """How many boxes each class has, and images without any."""
    count = np.bincount(content.label[(content.label >= 0) & ~content.crowd], minlength=len(content.categories))
    ranked = [(content.categories[k][1], count[k]) for k in np.argsort(-count, kind="stable")]
    listed = [f"{name} {number}" for name, number in ranked]
    yield Finding(OK, "boxes of each class: "
                  + ", ".join(listed if len(listed) <= 24 else [*listed[:12], "...", *listed[-11:]]))
    if unused := [name for name, number in ranked if not number]:
        yield Finding(WARN, f"{len(unused)} classes have no box ({some(unused)})")
    if few := [f"{name} {number}" for name, number in ranked if 0 < number < FEW]:
        yield Finding(WARN, f"{len(few)} classes have less than {FEW} boxes ({some(few)})")
    if bare := len(content.names) - len(np.unique(content.image[content.image >= 0])):
        yield Finding(OK, f"{bare} of {len(content.names)} images have no box; training leaves them out")


def against_anchors(content: Content, scale: tuple[int, int], anchors: Sequence[int]) -> Iterator[Finding]:
    """Sizes of boxes (the root of their area) once images are resized to `scale`, beside the sides of the anchors."""
    kept = _sound(content) & (content.boxes[:, 2:] > 0).all(1) & ~content.crowd
    if not kept.any():
        return
    extent, sizes, (least, most) = content.boxes[kept, 2:], _sizes(content)[kept], (min(anchors), max(anchors))
    side = np.sqrt(extent.prod(1)) * np.minimum(scale[0] / sizes.max(1), scale[1] / sizes.min(1))
    low, middle, high = np.percentile(side, (5, 50, 95))
    yield Finding(OK, f"boxes at training size (root of the area): 5 % below {low:.0f}, half below {middle:.0f}, 5 % "
                      f"above {high:.0f} pixels; anchors have {least:.0f} to {most:.0f}")
    odd = {f"below half the smallest anchor ({least:.0f} pixels); a larger data.scale may help": side < least / 2,
           f"above twice the largest anchor ({most:.0f} pixels)": side > most * 2,
           "more than four times as long as wide; anchors are up to twice": extent.max(1) > 4 * extent.min(1)}
    for what, which in odd.items():
        if which.mean() > .1:
            yield Finding(WARN, f"{which.mean():.0%} of the boxes are {what}")


def _sound(content):
    """Mask of boxes that are four numbers, of an image that has a size."""
    listed = content.image >= 0
    listed[listed] = (content.sizes[content.image[listed]] > 0).all(1)
    return listed & ~np.isnan(content.boxes[:, 0])


def _sizes(content):
    """(width, height) of each box's image; 0 where it is not listed."""
    return np.concatenate([content.sizes, [[0, 0]]])[content.image, ::-1]


def _boxes(content, state, which, what):
    """A finding about the boxes of a mask, where there are any."""
    chosen = np.flatnonzero(which)
    if len(chosen):
        ids, rows = [content.annotation_ids[k] for k in chosen[:_EXAMPLES]], content.image[chosen]
        names = [f"annotation {i} of {content.names[row] if row >= 0 else 'no image'}" for i, row in zip(ids, rows)]
        yield Finding(state, f"{len(chosen)} boxes {what} ({some(names, len(chosen))})",
                      np.unique(rows[rows >= 0]).tolist())


def _twice(state, what, values):
    if rows := _repeated(values):
        yield Finding(state, f"{len(rows)} {what} ({some([values[k] for k in rows])})")


def some(values: Sequence, count: int | None = None) -> str:
    """The first three values, and dots where `count` (all of them unless given) is more."""
    return ", ".join(map(str, values[:_EXAMPLES])) + ", ..." * ((count or len(values)) > _EXAMPLES)


def _repeated(values):
    """Rows whose value an earlier row has."""
    seen, rows = set(), []
    for row, value in enumerate(map(str, values)):
        rows += [row] * (value in seen)
        seen.add(value)
    return rows


def _doubled(content):
    """Mask of boxes that equal an earlier one of their image and class."""
    keys = np.column_stack([content.image, content.label, np.nan_to_num(content.boxes)])
    result = np.ones(len(keys), bool)
    if len(keys):
        result[np.unique(keys, axis=0, return_index=True)[1]] = False
    return result
