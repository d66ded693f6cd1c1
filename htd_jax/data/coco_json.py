"""COCO's JSON as exporters really write it, read once for training and for scoring.

Where the meaning is plain it is taken: numbers in quotes, ids that are words, `null` and NaN where a value may be
absent, a byte order mark. What was accepted is what is scored: `File.ground_truth` is made from the same objects.
"""
import collections
import json
import os
from collections.abc import Iterable

import msgspec

from htd_jax.data import images
from htd_jax.errors import UserError


class Category(msgspec.Struct):
    id: int | str
    name: str | int | float


class Image(msgspec.Struct, gc=False):
    id: int | str
    file_name: str | int
    height: int
    width: int


class Annotation(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float]  # x, y, width, height
    id: int | str | None = None
    area: float | None = None  # None: the box's
    iscrowd: int | bool | None = 0
    ignore: int | bool | None = 0


class File(msgspec.Struct):
    """What is read of the JSON. All the rest, above all segmentations, is skipped without building objects."""

    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation] | None = None

    def ground_truth(self, only: Iterable[int | str] | None = None) -> dict:
        """For pycocotools, with the ids as the file spells them; of the images `only`, with their ids spelled so."""
        ids = [image.id for image in self.images] if only is None else only
        spelled = {str(id_): id_ for id_ in ids}
        return dict(
            images=[dict(id=spelled[str(i.id)], file_name=i.file_name, height=i.height, width=i.width)
                    for i in self.images if str(i.id) in spelled],
            categories=[dict(id=c.id, name=c.name) for c in self.categories],
            annotations=[
                dict(id=a.id, image_id=spelled[str(a.image_id)], category_id=a.category_id, bbox=list(a.bbox),
                     area=area(a), iscrowd=int(bool(a.iscrowd)))
                for a in self.annotations or () if str(a.image_id) in spelled])


def area(annotation: Annotation) -> float:
    """In pixels; the box's where the file has none."""
    return annotation.bbox[2] * annotation.bbox[3] if annotation.area is None else annotation.area


def read(path: str | os.PathLike) -> File:
    """Reads an annotation file; ids that are spelled in two ways (1 and "1") become as their lists have them.

    Raises UserError, which names the file and the entry: no such file, no JSON, a key is missing or has an impossible
    value, two images or categories have one id, an annotation has a category that is not listed.
    """
    file = _decode(path)
    where = f"annotation file {path}"
    if not file.categories:
        raise UserError(f"{where} has no categories")
    for category in file.categories:
        category.name = str(category.name)
    for image in file.images:
        image.file_name = str(image.file_name)
        if not (1 <= image.height < 2**31 and 1 <= image.width < 2**31):
            raise UserError(f"{where}: image {image.file_name} is {image.width} x {image.height} pixels "
                            "(width x height)")
    _check_ids(where, "images", [image.id for image in file.images], [image.file_name for image in file.images])
    _check_ids(where, "categories", [c.id for c in file.categories], [c.name for c in file.categories])
    _spell(file.annotations or (), "image_id", file.images)
    _spell(file.annotations or (), "category_id", file.categories)
    _check_categories(where, file)
    return file


def _decode(path):
    data = images.read_bytes(path, "annotation")
    if not data.strip():
        raise UserError(f"annotation file {path} is empty")
    try:
        try:
            return msgspec.json.decode(data, type=File, strict=False)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):  # Python's reader also takes NaN, a BOM, UTF-16
            content = json.loads(data, parse_constant=lambda _: None)
            return msgspec.convert(content, type=File, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"annotation file {path} is not a COCO detection file: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"annotation file {path} is not UTF-8 ({error}): save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotation file {path} is not JSON: {error}") from None


def _check_ids(where, name, ids, names):
    """Two entries of one id are named."""
    twice = next((i for i, count in collections.Counter(map(str, ids)).items() if count > 1), None)
    if twice is None:
        return
    first, second = [k for k, id_ in enumerate(ids) if str(id_) == twice][:2]
    raise UserError(f"{where} has two {name} of one id: {name}[{first}] ({names[first]}) and {name}[{second}] "
                    f"({names[second]}) have {ids[first]!r}; give each its own, or remove one")


def _spell(annotations, key, listed):
    """Replaces ids of annotations by those that `listed` has, where they differ in spelling alone."""
    ids = {entry.id for entry in listed}
    spelled = {str(id_): id_ for id_ in ids}
    for annotation in annotations:
        if (id_ := getattr(annotation, key)) not in ids:
            setattr(annotation, key, spelled.get(str(id_), id_))


def _check_categories(where, file):
    ids = {category.id for category in file.categories}
    for k, a in enumerate(file.annotations or ()):
        if a.category_id not in ids:
            raise UserError(f"{where}: annotation {k if a.id is None else a.id} of image {a.image_id} has category id "
                            f"{a.category_id}, which is not in its list of categories")
