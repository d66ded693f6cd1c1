"""`Detector`: a trained HTD for use from Python, on files, folders, arrays and PIL images."""
import functools
import os
import runpy
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from htd_jax import config as config_lib, mesh as mesh_lib, paths, recipes
from htd_jax.data import Category, Dataset, detection_batches
from htd_jax.data.coco import CocoDataset
from htd_jax.data.user_images import UserImages
from htd_jax.errors import UserError
from htd_jax.evaluation import restored, runner, tiles
from htd_jax.evaluation.image_detections import Detection, ImageDetections
from htd_jax.models import functional

__all__ = ["Detection", "Detector", "ImageDetections"]

SCORE = .3
OVERLAP = .2
Results = Iterator[tuple[int, ImageDetections | UserError]]


class Detector:
    """Detects objects. `Detector.from_checkpoint` makes one.

    Attributes:
      config: its configuration.
      categories: the (id, name) of each label; the ids are those of the annotations trained on.
    """

    def __init__(self, config: ConfigDict, state: dict, categories: Iterable[tuple[int, str]],
                 source: str | os.PathLike = "the detector"):
        """Takes the state of `evaluation.restored.restore`. Processes `config.test.batch_size` images at a time.

        `source`: the checkpoint that it comes from.
        """
        self.config, self.categories, self._source = config, tuple(Category(*pair) for pair in categories), source
        self._classes = (*self.categories, *_unnamed(self.categories, config.model.num_classes))
        self._detect = functools.partial(runner.compile_detect(functional.functions(config).detect), (state,))

    @classmethod
    def from_checkpoint(cls, checkpoint: str | os.PathLike | tuple, batch_size: int | None = None) -> "Detector":
        """Loads a detector. What it compiles is kept in `config.compilation_cache`, unless JAX has a folder for it.

        Args:
          checkpoint: a training workdir (its latest step) or one saved step, which bring their configuration and
            class names; or (config, checkpoint), where config is a ConfigDict or the path or name of a file of
            configs/, and checkpoint any of the former, a `.safetensors` or a `.pth` file. A file with 80 classes gets
            COCO's names.
          batch_size: images processed at a time; that of the configuration (`test.batch_size`) unless given.
        Raises UserError: nothing is there, or it does not fit the configuration.
        """
        config, source = checkpoint if isinstance(checkpoint, tuple) else (None, checkpoint)
        config = _config(config, source)
        if batch_size is not None:
            config.test.batch_size = batch_size
        config_lib.validate(config)
        mesh_lib.keep_compiled(config.compilation_cache)
        state = restored.restore(config, source)
        return cls(config, state, restored.categories(source, config.model.num_classes), source)

    def predict(self, x: Any, score: float | int = SCORE, tile: tuple[int, int] | None = None,
                overlap: float | int = OVERLAP) -> ImageDetections | list[ImageDetections]:
        """Detects objects in one image or several.

        Args:
          x: an image, or a folder of images (its own files, by name), or a list of images. An image is a path, a PIL
            image, or an array uint8 [H, W, 3] RGB or [H, W] grey. A file's EXIF orientation is applied, so boxes are in
            the pixels that an image viewer shows; a PIL image and an array are taken as they are.
          score: the lowest score wanted. The model itself outputs nothing below `config.test.score`.
          tile: (height, width) in pixels of tiles in which an image is processed, each as an image of its own; their
            detections are merged by NMS within each class. For images that are much larger than `config.test.scale`.
          overlap: the share of its side by which a tile overlaps the next; should be no less than an object.
        Returns:
          `ImageDetections`, best first; for a folder or list, a list of them in order.
        Raises UserError: a file is missing or no image, an array has another dtype or shape, a folder has no image.
        """
        images = UserImages(x)
        results = [None] * len(images)
        for i, result in self.stream(images, score, tile, overlap):
            if isinstance(result, UserError):
                raise result
            results[i] = result
        return results[0] if images.single else results

    def stream(self, images: UserImages, score: float | int = SCORE, tile: tuple[int, int] | None = None,
               overlap: float | int = OVERLAP) -> Results:
        """Yields (i, detections) as they are done, images of one shape after another; (i, UserError) where one cannot
        be read. Arguments as for `predict`."""
        if not 0 <= score <= 1:
            raise UserError(f"score (={score}) must be between 0 and 1")
        if tile is not None:
            tiles.check(tile, overlap)
        found = self._whole(images) if tile is None else self._in_tiles(images, tile, overlap)
        for i, arrays in found:
            yield i, arrays if isinstance(arrays, UserError) else self._detections(images, i, arrays, score)

    def evaluate(self, dataset: Dataset | None = None, *, annotations: str | os.PathLike | None = None,
                 images: str | os.PathLike | None = None, output: str | os.PathLike | None = None) -> dict:
        """Scores the detector by the COCO API: what eval.py writes to metrics.json.

        Args:
          dataset: images with ground truth (`htd_jax.data.Dataset`); or
          annotations, images: a COCO JSON file, and the folder of its images.
          output: folder for metrics.json, detections.json, detections.png and report.html.
        Returns: `AP`, `AP50`, ... (`evaluation.coco.METRICS`), `per_class` (name: AP) and `images`.
        Raises UserError: the data cannot be read, or their classes are not those of the detector.
        """
        if dataset is None:
            if annotations is None or images is None:
                raise UserError("evaluate() needs a dataset, or annotations='val.json' and images='val/'")
            dataset = CocoDataset(annotations, images)
        labels = restored.check_classes(dataset.categories, self.config, self._source)
        return runner.evaluate(self._detect, dataset, self.config, output, labels=labels)

    def _whole(self, images):
        """Yields (i, arrays of the detections, best first, or UserError)."""
        yield from sorted(images.errors.items())
        readable = images.readable()
        size = 1 if len(readable) == 1 else self.config.test.batch_size
        for index, batch in detection_batches.batches(readable, self.config, size):
            found = jax.device_get(self._detect(batch))
            for slot in np.flatnonzero(index >= 0):
                i = readable.rows[index[slot]]
                yield i, images.errors.get(i) or _best_first({name: value[slot] for name, value in found.items()})

    def _in_tiles(self, images, tile, overlap):
        """As `_whole`, one image after another, each as a list of tiles."""
        for i in range(len(images)):
            try:
                pixels = images.image(i)
            except UserError as error:
                yield i, error
                continue
            corners = tiles.corners(pixels.shape[:2], tile, overlap)
            parts = [pixels[y:y + tile[0], x:x + tile[1]] for y, x in corners]
            found = dict(self._whole(UserImages(parts)))
            yield i, tiles.merge([found[k] for k in range(len(parts))], corners, self.config.test.nms_iou)

    def _detections(self, images, i, found, score):
        result = ImageDetections(found["boxes"], found["scores"], found["labels"], self._classes, images.names[i],
                                 functools.partial(images.image, i))
        return result.above(score)


def _best_first(found):
    """The valid detections of one image."""
    keep = np.flatnonzero(found["valid"])
    keep = keep[np.argsort(-found["scores"][keep], kind="stable")]
    return {name: found[name][keep] for name in ("boxes", "scores", "labels")}


def _unnamed(categories, num_classes):
    """Categories of the labels that the annotations have no class for."""
    count, last = len(categories), max((id_ for id_, _ in categories), default=0)
    return tuple(Category(last + 1 + i - count, f"class {i}") for i in range(count, num_classes))


def _config(config, source):
    """A copy of the configuration: the one given, that of a file of configs/, or the checkpoint's own."""
    if config is None:
        if paths.of(source).is_file():
            raise UserError(f"{source} has no configuration beside it: give (config, {str(source)!r})")
        from htd_jax import checkpoints  # Orbax takes seconds to import, and a file of weights needs none
        return checkpoints.load_config(source)
    if isinstance(config, ConfigDict):
        return config.copy_and_resolve_references()
    try:
        return runpy.run_path(recipes.path_of(config))["get_config"]()
    except Exception as error:  # it is Python and may raise anything
        raise UserError(f"config file {config} cannot be used: {type(error).__name__}: {error}") from error
