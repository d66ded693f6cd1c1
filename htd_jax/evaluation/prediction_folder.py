"""The folder that predict.py leaves: each image with its detections drawn on it, and detections.json."""
import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from htd_jax import paths
from htd_jax.data.user_images import UserImages
from htd_jax.evaluation import drawing, runner
from htd_jax.evaluation.image_detections import Detection, ImageDetections


class PredictionFolder:
    """Writes images as they come, and all detections at the end (`close`). Does nothing without a folder."""

    def __init__(self, folder: str | os.PathLike | None, images: UserImages):
        """`folder`: created where missing."""
        self._folder = folder and runner.make_folder(folder)
        self._images, self._found = images, {}
        self._files = _file_names(images.names)

    def add(self, i: int, detections: ImageDetections) -> None:
        """Draws image i with its detections."""
        if not self._folder:
            return
        self._found[i] = list(detections)
        with runner.writing_to_folder(self._folder):
            drawing.write(self._folder / self._files[i], detections.draw(), quality=92)

    def close(self) -> None:
        """Writes detections.json: rows of `image`, `drawn`, `width`, `height` and `detections`, in the order given."""
        if not self._folder:
            return
        rows = [{"image": self._images.names[i], "drawn": self._files[i], **self._images.size(i)._asdict(),
                 "detections": [_rounded(d) for d in self._found[i]]} for i in sorted(self._found)]
        with runner.writing_to_folder(self._folder):
            paths.write(self._folder / "detections.json", json.dumps(rows, indent=1) + "\n")


def summary(detections: Sequence[Detection]) -> str:
    """"2 person, 1 dog": how many of each class, the commonest first."""
    counts = collections.Counter(d.label for d in detections).most_common()
    return ", ".join(f"{count} {label}" for label, count in counts) or "nothing"


def _file_names(names):
    """A name for each drawing, never that of another nor, being marked, of an image in the same folder."""
    taken, result = set(), []
    for name in names:
        stem, number = pathlib.Path(name).stem, 1
        while (file := f"{stem}_detected{f'_{number}' * (number > 1)}.jpg") in taken:
            number += 1
        taken.add(file)
        result.append(file)
    return result


def _rounded(detection):
    row = dataclasses.asdict(detection)
    return {**row, "score": round(row["score"], 6), "box": [round(v, 3) for v in row["box"]]}
