"""Classes of two data sets, or of a data set and a run, brought together by their names."""
import collections
import dataclasses
import difflib
import logging
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32, UInt8

from htd_jax.data.records import Category, Dataset, Record
from htd_jax.errors import UserError

log = logging.getLogger(__name__)
_SHOWN = 5


def label_map(classes: Sequence[tuple[int | str, str]], into: Sequence[tuple[int | str, str]], what: str,
              into_what: str) -> Int32[np.ndarray, " K"]:
    """The label in `into` of each of `classes`, (id, name) pairs; -1 where it has no class of this name.

    `what` and `into_what` name the two in errors, as in "the annotations". Raises UserError unless one has all the
    classes of the other; it names the first that differs.
    """
    names, others = [name for _, name in classes], [name for _, name in into]
    if names == others:
        return np.arange(len(names), dtype=np.int32)
    counts = collections.Counter(names) | collections.Counter(others)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{what} and {into_what} have different lists of classes, which cannot be matched by name: "
                        f"{twice!r} is there twice")
    if not (set(names) <= set(others) or set(names) >= set(others)):
        raise UserError(_difference(names, others, what, into_what))
    label_of = {name: label for label, name in enumerate(others)}
    return np.array([label_of.get(name, -1) for name in names], np.int32)


def scored_labels(trained: Sequence[tuple[int | str, str]], dataset: Sequence[tuple[int | str, str]], what: str,
                  into_what: str) -> Int32[np.ndarray, " K"]:
    """`label_map` of the classes of a detector into those of the data set that scores it.

    Warns of classes that only one side has, and what that means for the score.
    """
    labels = label_map(trained, dataset, what, into_what)
    lacking = [name for (_, name), label in zip(trained, labels) if label < 0]
    unknown = [name for label, (_, name) in enumerate(dataset) if label not in labels]
    if lacking:
        log.warning("%s: %d of the %d classes of %s are not listed, and not scored: %s", into_what, len(lacking),
                    len(trained), what, listed(lacking))
    if unknown:
        log.warning("%s: %d classes are not among those of %s, and never found: %s", into_what, len(unknown), what,
                    listed(unknown))
    return labels


def listed(names: Sequence[str]) -> str:
    """"a, b, c, ..." of the first five."""
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


class Relabelled:
    """A data set with its classes in the order of a run."""

    def __init__(self, dataset: Dataset, categories: Sequence[tuple[int | str, str]], labels: Int32[np.ndarray, " K"]):
        """`labels`: place of each of the data set's classes among `categories`."""
        self._dataset, self._labels = dataset, labels
        self.categories = tuple(Category(*pair) for pair in categories)

    def __len__(self) -> int:
        return len(self._dataset)

    def record(self, index: SupportsIndex) -> Record:
        record = self._dataset.record(index)
        return dataclasses.replace(record, labels=self._labels[record.labels])

    def image(self, index: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        return self._dataset.image(index)

    def ground_truth(self) -> dict:
        return self._dataset.ground_truth()


def _difference(names, others, what, into_what):
    """The first of `names` that `others` lacks, and its nearest there."""
    number, name = next((k, name) for k, name in enumerate(names) if name not in others)
    near = difflib.get_close_matches(name, [other for other in others if other not in names], n=1, cutoff=.5)
    hint = f"; is it {near[0]!r} there?" if near else f", which are {listed(others)}"
    return (f"{what} and {into_what} have different classes: {name!r}, class {number + 1} of {len(names)} in {what}, "
            f"is not among the {len(others)} of {into_what}{hint}")
