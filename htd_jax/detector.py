"""`Detector`: a trained HTD for use from Python, on files, folders, arrays and PIL images."""
import dataclasses
import functools
import os
import pathlib
import runpy
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from htd_jax import config as config_lib
from htd_jax.data import detection_batches
from htd_jax.data.user_images import UserImages
from htd_jax.errors import UserError
from htd_jax.evaluation import restored, runner
from htd_jax.models import functional

SCORE = .3


@dataclasses.dataclass(frozen=True, slots=True)
class Detection:
    """One object: name and number of its class, score 0..1, box (x1, y1, x2, y2) in pixels of the image given."""

    label: str
    label_id: int
    score: float
    box: tuple[float, float, float, float]


class Detector:
    """Detects objects. `Detector.from_checkpoint` makes one.

    Attributes:
      config: its configuration.
      categories: the (id, name) of each label; the ids are those of the annotations trained on.
    """

    def __init__(self, config: ConfigDict, state: dict, categories: Iterable[tuple[int, str]]):
        """Takes the state of `evaluation.restored.restore`. Processes `config.test.batch_size` images at a time."""
        self.config, self.categories = config, tuple(categories)
        unnamed = range(len(self.categories), config.model.num_classes)
        self._names = (*(name for _, name in self.categories), *(f"class {i}" for i in unnamed))
        self._detect = functools.partial(runner.compile_detect(functional.functions(config).detect), (state,))

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike | tuple, batch_size: int | None = None) -> "Detector":
        """Loads a detector.

        Args:
          checkpoint: a training workdir (its latest step) or one saved step, which bring their configuration and
            class names; or (config, checkpoint), where config is a ConfigDict or the path of a file of configs/, and
            checkpoint any of the former, a `.safetensors` or a `.pth` file. A file with 80 classes gets COCO's names.
          batch_size: images processed at a time; that of the configuration (`test.batch_size`) unless given.
        Raises UserError: nothing is there, or it does not fit the configuration.
        """
        config, source = checkpoint if isinstance(checkpoint, tuple) else (None, checkpoint)
        config = _config(config, source)
        if batch_size is not None:
            config.test.batch_size = batch_size
        state = restored.restore(config_lib.validate(config), source)
        return cls(config, state, restored.categories(source, config.model.num_classes))

    def predict(self, x: Any, score: float | int = SCORE) -> list:
        """Detects objects in one image or several.

        Args:
          x: an image, or a folder of images (its own files, by name), or a list of images. An image is a path, a PIL
            image, or an array uint8 [H, W, 3] RGB or [H, W] grey. A file's EXIF orientation is applied, so boxes are in
            the pixels that an image viewer shows; a PIL image and an array are taken as they are.
          score: the lowest score wanted. The model itself outputs nothing below `config.test.score`.
        Returns:
          List of `Detection`, best first; for a folder or list, one such list an image, in order.
        Raises UserError: a file is missing or no image, an array has another dtype or shape, a folder has no image.
        """
        images = UserImages(x)
        results = [None] * len(images)
        for i, result in self.stream(images, score):
            if isinstance(result, UserError):
                raise result
            results[i] = result
        return results[0] if images.single else results

    def stream(self, images: UserImages,
               score: float | int = SCORE) -> Iterator[tuple[int, list[Detection] | UserError]]:
        """Yields (i, detections) as they are done, images of one shape after another; (i, UserError) where one cannot
        be read."""
        if not 0 <= score <= 1:
            raise UserError(f"score (={score}) must be between 0 and 1")
        yield from sorted(images.errors.items())
        readable = images.readable()
        size = 1 if len(readable) == 1 else self.config.test.batch_size
        for index, batch in detection_batches.batches(readable, self.config, size):
            found = jax.device_get(self._detect(batch))
            for slot in np.flatnonzero(index >= 0):
                i = readable.rows[index[slot]]
                yield i, images.errors.get(i) or self._detections({k: v[slot] for k, v in found.items()}, score)

    def _detections(self, found, score):
        keep = found["valid"] & (found["scores"] >= score)
        rows = zip(found["labels"][keep].tolist(), found["scores"][keep].tolist(), found["boxes"][keep].tolist())
        return sorted((Detection(self._names[label], label, value, tuple(box)) for label, value, box in rows),
                      key=lambda d: -d.score)


def _config(config, source):
    """A copy of the configuration: the one given, that of a file of configs/, or the checkpoint's own."""
    if config is None:
        if pathlib.Path(source).is_file():
            raise UserError(f"{source} has no configuration beside it: give (config, {str(source)!r})")
        from htd_jax import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
        return checkpoints.load_config(source)
    if isinstance(config, ConfigDict):
        return config.copy_and_resolve_references()
    try:
        return runpy.run_path(str(config))["get_config"]()
    except Exception as error:  # it is Python and may raise anything
        raise UserError(f"config file {config} cannot be used: {type(error).__name__}: {error}") from error
