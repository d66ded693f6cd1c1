"""Weights, inputs and files behind the golden figures. No weight file travels: name and shape determine a tensor.

Names and shapes come from this project's own model, so a wrong one shows as a wrong figure. The draws are those of the
published implementation's run (`tests/golden/README.md`).
"""
import functools
import importlib
import pathlib
import re
import zlib

import jax
import numpy as np
from flax import nnx, traverse_util

from htd_jax.models.htd import build
from htd_jax.weights import loading, names

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"
NUM_CLASSES = 80
CHECKSUMS = {  # sum of |w| over all tensors, both names of the two shared ones counted
    "htd_r50": 1266341.409501,
    "htd_r101": 1814418.772012,
    "htd_r101_dcn": 1855927.898601,
    "htd_x101_dcn": 3065435.671258,
}
_OUTPUTS = ("rpn_head.rpn_cls.weight", "rpn_head.rpn_reg.weight")
_FPN_GAIN = (0.5, 1.0, 2.0, 5.0)


def find(name):
    """The golden file `name`: in the clone where it is small enough to travel, else beside it; None where it is not."""
    found = (folder / name for folder in (GOLDEN, SHARED / "golden"))
    return next((path for path in found if path.is_file()), None)


def config(name, form="auto"):
    """The configuration `configs/<name>.py` as the figures were computed: 80 classes, `sampling = first`.

    `form`: of RoIAlign.
    """
    settings = importlib.import_module(f"configs.{name}").get_config()
    settings.model.num_classes = NUM_CLASSES
    settings.sampling, settings.model.roi_align = "first", form
    return settings


def abstract(name, form="auto"):
    """The model of a configuration, with shapes in place of arrays."""
    return nnx.eval_shape(lambda: build(config(name, form).model, nnx.Rngs(0)))


@functools.lru_cache(maxsize=1)
def weights(name):
    """{checkpoint name: float32 array, PyTorch layout} of a configuration, every tensor once."""
    return draw(abstract(name))


def draw(model):
    """{checkpoint name: float32 array, PyTorch layout} of any model, which may be abstract."""
    flat = traverse_util.flatten_dict(loading.tree_of(model))
    shapes = {names.checkpoint_name(".".join(map(str, path))): names.checkpoint_shape(x.shape)
              for path, x in flat.items()}
    return {tensor: weight(tensor, shape) for tensor, shape in shapes.items()}


def checksum(tensors):
    """What `CHECKSUMS` has, of `weights(name)`."""
    return sum(len(names.all_names(name)) * np.abs(array.astype(np.float64)).sum() for name, array in tensors.items())


def state(name, draw=0):
    """The model's arrays as a nested dict, as `nnx.merge` takes it.

    `draw` > 0 multiplies every weight by 1 + 1e-6 n, n normal: another program's rounding, and more.
    """
    tree = loading.load_into(loading.tree_of(abstract(name)), weights(name), backbone_only=False)
    if not draw:
        return tree
    rng = np.random.default_rng(draw)
    return jax.tree.map(lambda x: (x * (1 + 1e-6 * rng.standard_normal(x.shape))).astype(np.float32), tree)


def weight(name, shape):
    """The tensor called `name`: one float64 draw of the full shape, C order, seeded by the name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith(".running_var"):
        value = 1 + 0.1 * rng.random(size=shape)
    elif name.endswith(".running_mean"):
        value = 0.1 * rng.standard_normal(size=shape)
    elif name.endswith(".bias"):
        value = 0.05 * rng.standard_normal(size=shape)
    elif len(shape) == 1:
        value = (1 + 0.1 * rng.standard_normal(size=shape)) * (0.5 if name.endswith(".bn3.weight") else 1)
    else:
        value = rng.standard_normal(size=shape) * np.sqrt(1.0 / np.prod(shape[1:])) * _gain(name)
        if name in _OUTPUTS or name.endswith((".fc_cls.weight", ".fc_reg.weight")):
            value = value - value.mean(axis=1, keepdims=True)
    return value.astype(np.float32)


def _gain(name):
    """Keeps scores spread out, boxes moving and all pyramid levels in play."""
    if name == "rpn_head.rpn_reg.weight":
        return 0.1
    if name.endswith(".fc_cls.weight"):
        return 4.0
    if name.endswith((".fc_reg.weight", ".conv_offset.weight")):
        return 2.0
    level = re.fullmatch(r"neck\.fpn_convs\.(\d)\.conv\.weight", name)
    return _FPN_GAIN[int(level.group(1))] if level else 1.0


def images(sizes, padded, seed):
    """Images float32 `[n, H, W, 3]`, as if normalised, zero outside `sizes` [(h, w)], padded to `padded` (H, W).

    Coarse 16-pixel blocks plus fine noise.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    n, (h, w) = len(sizes), padded
    coarse = rng.standard_normal((n, 3, -(-h // 16), -(-w // 16)))
    fine = rng.standard_normal((n, 3, h, w))
    blocks = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :h, :w]
    pixels = (blocks + 0.3 * fine).astype(np.float32).transpose(0, 2, 3, 1)
    for i, (h, w) in enumerate(sizes):
        pixels[i, h:] = 0
        pixels[i, :, w:] = 0
    return pixels


def training_batch(sizes, seed, boxes_per_image=(5, 3), slots=8):
    """A training batch of images of the given sizes [(h, w)], padded to multiples of 32."""
    padded = tuple(-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    boxes, labels = np.zeros((len(sizes), slots, 4), np.float32), np.zeros((len(sizes), slots), np.int32)
    valid = np.zeros((len(sizes), slots), bool)
    for i, (h, w) in enumerate(sizes):
        rng = np.random.Generator(np.random.PCG64(seed * 1000 + i))
        for k in range(boxes_per_image[i % len(boxes_per_image)]):
            u = rng.random(4)
            box_w, box_h = w * (0.08 + 0.5 * u[0]), h * (0.08 + 0.5 * u[1])
            x, y = (w - box_w) * u[2], (h - box_h) * u[3]
            boxes[i, k], valid[i, k] = (x, y, x + box_w, y + box_h), True
            labels[i, k] = rng.integers(0, NUM_CLASSES)
    return dict(image=images(sizes, padded, seed), size=np.int32(sizes), padded=np.int32([padded] * len(sizes)),
                boxes=boxes, labels=labels, valid=valid)
