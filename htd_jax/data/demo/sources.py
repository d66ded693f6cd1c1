"""The real material that demo scenes are made of, read from installed packages and divided between the splits.

Handwritten digits (UCI's optical digits, 8x8) and two photographs come with scikit-learn; more photographs, and faces
and non-faces (a subset of LFW, 25x25), with scikit-image. Nothing is downloaded.
Every item belongs to one split: digits and faces by index, photographs whole, letters by letter.
"""
import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from htd_jax.errors import UserError

CLASSES = tuple("0123456789")
DISTRACTOR = -1

FIELD = 48  # sprites are kept at most this many pixels long
# (rows, columns) that may be used.
PHOTOS = {
    "train": {"china": ..., "coffee": ..., "rocket": ..., "immunohistochemistry": ..., "grass": ..., "brick": ...,
              "stereo_motorcycle": ..., "astronaut": (slice(230, 512), slice(0, 512))},
    "val": {"flower": ..., "chelsea": ..., "hubble_deep_field": ..., "retina": (slice(150, 1260), slice(150, 1260)),
            "gravel": ..., "moon": ..., "camera": (slice(210, 512), slice(0, 512))},
}
# None that a handwritten digit looks like.
LETTERS = {"train": "AFHMNRTXknuw", "val": "EKPVWhmrtvx"}


@dataclasses.dataclass(frozen=True)
class Sprite:
    """Something to paste. `label` indexes `CLASSES`, or is `DISTRACTOR`; `source` names the item it came from.

    field: the outline is its level set at 128, so it can be drawn crisply at any size.
    texture: None for ink of one colour.
    points: x y of the outline's convex hull in pixels of the field.
    turn: the largest rotation either way, in degrees.
    """

    label: int
    source: str
    field: UInt8[np.ndarray, "H W"]
    texture: UInt8[np.ndarray, "H W 3"] | None
    points: Float32[np.ndarray, "points 2"]
    turn: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """One split's material: sprites by class, distractors by kind, photographs by name."""

    objects: tuple[tuple[Sprite, ...], ...]
    distractors: tuple[tuple[Sprite, ...], ...]
    photos: dict[str, UInt8[np.ndarray, "_ _ 3"]]


@functools.cache
def load(split: str) -> Sources:
    """The material of 'train' or 'val'; raises UserError where a package that carries it is missing."""
    try:
        import skimage.data
        import sklearn.datasets
    except ImportError as error:
        raise UserError(f"the demo's scenes need scikit-learn and scikit-image ({error}): pip install them") from None
    digits = _digits(sklearn.datasets.load_digits(), split)
    lfw = np.rint(skimage.data.lfw_subset() * 255).astype(np.uint8)
    photos = {name: _photo(name, region) for name, region in PHOTOS[split].items()}
    ovals = [_oval(f"lfw {i}", lfw[i]) for i in _part(np.arange(len(lfw)), split)]
    objects = [[s for s in digits if s.label == k] for k in range(10)]
    distractors = [_letters(split), ovals, _patches(photos)]
    return Sources(tuple(map(tuple, objects)), tuple(map(tuple, distractors)), photos)


def _part(items, split):
    """The first three quarters of a sequence, or the last: neighbours tend to come from the same hand."""
    cut = len(items) * 3 // 4
    return items[:cut] if split == "train" else items[cut:]


def _ink(label, source, image, turn):
    """A sprite of one colour from a small grey image, float, in which 1 is ink."""
    image = np.pad(image.astype(np.float32), 1)
    size = FIELD, round(FIELD * image.shape[0] / image.shape[1])
    smooth = np.clip(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), 0, 1)
    return _sprite(label, source, np.rint(smooth * 255).astype(np.uint8), None, turn)


def _sprite(label, source, field, texture, turn):
    outline = np.argwhere(field >= 128)[:, ::-1].astype(np.float32)
    return Sprite(label, source, field, texture, cv2.convexHull(outline)[:, 0], turn)


def _digits(bunch, split):
    """Sprites of the digits; a stroke's outline lies at half of full ink."""
    rows = _part(np.arange(len(bunch.target)), split)
    return [_ink(int(bunch.target[i]), f"digit {i}", bunch.images[i] / 16, 8) for i in rows]


def _letters(split):
    def letter(char):
        image = np.zeros((64, 64), np.uint8)
        cv2.putText(image, char, (10, 48), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 255, 4)
        return _ink(DISTRACTOR, f"letter {char}", cv2.GaussianBlur(image, (0, 0), 1.5) / 255, 12)

    return [letter(char) for char in LETTERS[split]]


def _oval(source, texture):
    """A distractor that shows a grey image in the ellipse that fits it."""
    field = np.zeros((FIELD, FIELD), np.uint8)
    cv2.ellipse(field, (FIELD // 2, FIELD // 2), (FIELD // 2 - 5, FIELD // 2 - 2), 0, 0, 360, 255, -1)
    return _framed(source, np.repeat(texture[..., None], 3, axis=2), field, 15)


def _framed(source, texture, field, turn):
    texture = cv2.resize(texture, field.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return _sprite(DISTRACTOR, source, cv2.GaussianBlur(field, (0, 0), 1.5), texture, turn)


def _patches(photos):
    """Pieces of the split's photographs, with four corners."""
    rng = np.random.default_rng(0)
    frame = np.pad(np.full((FIELD - 6, FIELD - 6), 255, np.uint8), 3)

    def patch(name, photo):
        size = int(rng.integers(40, 120))
        y, x = (int(rng.integers(0, n - size + 1)) for n in photo.shape[:2])
        return _framed(f"patch {name} {x} {y} {size}", photo[y:y + size, x:x + size], frame, 180)

    return [patch(name, photo) for name, photo in photos.items() for _ in range(12)]


def _photo(name, region):
    """A photograph by its name in scikit-image or scikit-learn, uint8 RGB [h, w, 3], short side at most 320."""
    import skimage.data
    import sklearn.datasets

    if name in ("china", "flower"):
        photo = sklearn.datasets.load_sample_image(f"{name}.jpg")
    else:
        photo = getattr(skimage.data, name)()
    photo = photo[0] if isinstance(photo, tuple) else photo
    photo = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)
    photo = photo[region]
    scale = min(1, 320 / min(photo.shape[:2]))
    return cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
