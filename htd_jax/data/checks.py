"""What is refused, and what is warned of, before the first step: boxes that teach nothing, images that are none."""
import concurrent.futures
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from htd_jax.data import images
from htd_jax.data.records import Dataset
from htd_jax.errors import UserError

log = logging.getLogger(__name__)
_BEYOND = 2  # pixels that a sloppy box may reach beyond its image
_THREADS = 16  # that read headers: most of the time is spent waiting for the disk


def check_boxes(where: str, boxes: Float[np.ndarray, "N 4"], sizes: Int[np.ndarray, "N 2"]) -> None:
    """Raises UserError where boxes are corners instead of x, y, width, height.

    That is where all of them fit their images (height, width) as x1, y1, x2, y2, and half of them do not as sizes.
    """
    if not len(boxes):
        return
    end, limit = boxes[:, 2:], sizes[:, ::-1] + _BEYOND
    beyond = (boxes[:, :2] + end > limit).any(1)
    if (end > boxes[:, :2]).all() and (end <= limit).all() and beyond.mean() >= .5:
        raise UserError(f"{where}: bbox is x, y, width, height, but these look like x1, y1, x2, y2: as sizes "
                        f"{beyond.sum()} of {len(boxes)} boxes reach beyond their images, as corners none does; "
                        "subtract x1 and y1 from the last two")


def check_used(where: str, used: Int[np.ndarray, " used"], crowd: Bool[np.ndarray, " N"],
               faults: dict[str, Bool[np.ndarray, " N"]], boxes: Float[np.ndarray, "N 4"]) -> None:
    """Raises UserError where no box but crowds is used for training; warns, with counts, where some fall away.

    Args:
      used: rows of those that are.
      faults: why boxes fall away, in words, and which do; a box counts for the first that it has.
      boxes: x, y, width, height.
    """
    fallen = _counts(faults)
    if crowd[used].all():
        crowds = [f"{crowd.sum()} around crowds (iscrowd 1)"] if crowd.any() else []
        shares = ": they look like shares of the image, but must be pixels" if _are_shares(boxes) else ""
        raise UserError(f"{where}: none of its {len(boxes)} boxes can be learned from: "
                        f"{', '.join(fallen + crowds) or 'their images are too small'}{shares}")
    if fallen:
        log.warning("%s: of %d boxes some are not used: %s", where, len(boxes), ", ".join(fallen))


def check_learnable(dataset: Dataset) -> None:
    """Raises UserError where a training set of any source has no box but crowds."""
    if not any((~dataset.record(i).crowd).any() for i in range(len(dataset))):
        raise UserError("the training set has no box that can be learned from")


def warn_without_boxes(validation: Dataset) -> None:
    """Warns where a validation set has nothing to be found."""
    if not any((~validation.record(i).crowd).any() for i in range(len(validation))):
        log.warning("the validation set has no box: every AP will be -1, which says nothing of the detector")


def describe(dataset: Dataset) -> str:
    """"6 images, 12 boxes of 2 classes": what a data set has, crowds left out."""
    records = [dataset.record(i) for i in range(len(dataset))]
    boxes = sum(int((~record.crowd).sum()) for record in records)
    return f"{len(records)} images, {boxes} boxes of {len(dataset.categories)} classes"


def check_files(folder: str | os.PathLike, names: Sequence[str], sizes: Int[np.ndarray, "N 2"]) -> None:
    """Looks at the headers of all image files, and at the pixels of those whose depth is not 8 bits.

    Args:
      sizes: (height, width) that the annotations state.
    Raises UserError: the first that is no image or of another size, and how many there are.
    """
    def check(name, size):
        try:
            images.check_header(pathlib.Path(folder) / name, tuple(size))
        except UserError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        errors = [error for error in pool.map(check, names, sizes.tolist()) if error]
    if errors:
        more = f" ({len(errors)} of {len(names)} images cannot be used)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; replace the file, or remove its image from the annotations")


def _counts(faults):
    """["3 of area 0", ...], each box counted once."""
    reasons, first = list(faults), np.argmax([*faults.values()], 0)
    counts = np.bincount(first[np.any([*faults.values()], 0)], minlength=len(reasons))
    return [f"{count} {reason}" for count, reason in zip(counts, reasons) if count]


def _are_shares(boxes):
    return len(boxes) > 0 and ((boxes >= 0) & (boxes <= 1)).all()
