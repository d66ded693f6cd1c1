"""The table of names: how each tensor of the model is called in the original's checkpoints, and laid out there.

Paths of the model are written with dots (`backbone.layer1.0.conv2.kernel`). A name is a module and a last part:
`MODULES` translates the one, `LEAVES` the other, in both directions. All of it is derived from names alone; the shapes
of htd_r50, htd_r101, htd_r101_dcn and htd_x101_dcn were compared with those of the original (tests/golden).
"""
import re

import numpy as np

_BBOX, _POOL = "roi_head.bbox_head", "roi_head.bbox_roi_extractor.1"

# Module here, module in a checkpoint; {} is an index, the same on both sides.
MODULES = (
    ("backbone.stem.conv1", "backbone.conv1"),
    ("backbone.stem.bn1", "backbone.bn1"),
    ("backbone.layer{}.{}.conv{}", "backbone.layer{}.{}.conv{}"),
    ("backbone.layer{}.{}.bn{}", "backbone.layer{}.{}.bn{}"),
    ("backbone.layer{}.{}.conv{}.offset", "backbone.layer{}.{}.conv{}.conv_offset"),
    ("backbone.layer{}.{}.downsample.conv", "backbone.layer{}.{}.downsample.0"),
    ("backbone.layer{}.{}.downsample.bn", "backbone.layer{}.{}.downsample.1"),
    ("neck.lateral_convs.{}", "neck.lateral_convs.{}.conv"),
    ("neck.fpn_convs.{}", "neck.fpn_convs.{}.conv"),
    ("rpn.conv", "rpn_head.rpn_conv"),
    ("rpn.cls", "rpn_head.rpn_cls"),
    ("rpn.reg", "rpn_head.rpn_reg"),
    ("sfa.convs.{}", "roi_head.glbctx_head.convs.{}.conv"),
    ("sfa.fc", "roi_head.glbctx_head.fc"),
    ("stage0.fcs.{}", f"{_BBOX}.0.shared_fcs.{{}}"),
    ("stage0.fc_cls", f"{_BBOX}.0.fc_cls"),
    ("stage0.fc_reg", f"{_BBOX}.0.fc_reg"),
    ("pgraph.fcs.0", f"{_BBOX}.1.fcs.0"),
    ("pgraph.fcs.1", f"{_BBOX}.1.fcs.2"),  # number 1 is the ReLU between them
    ("pgraph.graph.{}", f"{_BBOX}.1.graph_lvl{{}}_cls"),
    ("pgraph.fc_cls", f"{_BBOX}.1.fc_cls"),
    ("ba.att_conv1", f"{_POOL}.conv1"),
    ("ba.att_conv2", f"{_POOL}.conv2"),
    ("ba.convs.{}.conv", f"{_BBOX}.1.convs.{{}}.conv"),
    ("ba.convs.{}.gn", f"{_BBOX}.1.convs.{{}}.gn"),
    ("ba.fc_reg", f"{_BBOX}.1.fc_reg"),
)
LEAVES = (("kernel", "weight"), ("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var"))

# BA's attention is a Sequential over two convs that are also attributes: the original lists both tensors twice.
ALIASES = ((f"{_POOL}.conv1", f"{_POOL}.att.1"), (f"{_POOL}.conv2", f"{_POOL}.att.3"))

_COUNTER = "num_batches_tracked"  # of PyTorch's batch norm; means nothing where running statistics are used as they are
_NORM = re.compile(r"(^|\.)(bn\d*|gn)$")  # the last part of a module of ours that is a norm
_CROP = 7  # bins along each side of a pooled RoI
_FLATTENED_CROP = ("stage0.fcs.0.kernel", "pgraph.fcs.0.kernel")


def checkpoint_name(path: str) -> str | None:
    """The name in a checkpoint of the tensor at `path`, or None where the original has no such tensor."""
    module, _, leaf = path.rpartition(".")
    original = _translate(module, MODULES)
    return f"{original}.{dict(LEAVES)[leaf]}" if original and leaf in _leaves(module) else None


def model_path(name: str) -> str | None:
    """The path in the model of a checkpoint's tensor (by either of its names), or None where it has none."""
    module, _, leaf = first_name(name).rpartition(".")
    ours = _translate(module, [row[::-1] for row in MODULES])
    leaves = (path for path, original in LEAVES if original == leaf and ours and path in _leaves(ours))
    return next((f"{ours}.{path}" for path in leaves), None)


def first_name(name: str) -> str:
    """The first of a tensor's names in a checkpoint; most have only this one."""
    for first, second in ALIASES:
        if name.startswith(f"{second}."):
            return first + name.removeprefix(second)
    return name


def all_names(name: str) -> list[str]:
    """Every name under which the original lists the tensor whose first name this is."""
    return [name] + [second + name.removeprefix(first) for first, second in ALIASES if name.startswith(f"{first}.")]


def is_counter(name: str) -> bool:
    """Whether this is batch norm's count of training steps, which has no place in the model."""
    return name.rpartition(".")[2] == _COUNTER


def counter_name(name: str) -> str | None:
    """The name of the counter that PyTorch keeps beside this running mean, None for any other tensor."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.{_COUNTER}" if leaf == "running_mean" else None


def checkpoint_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a checkpoint of a tensor that has `shape` here: (kh, kw, in, out) -> (out, in, kh, kw)."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else tuple(reversed(shape))


def to_checkpoint(path: str, array: np.ndarray) -> np.ndarray:
    """The tensor at `path` as PyTorch lays it out: HWIO -> OIHW, (in, out) -> (out, in), (7, 7, C) -> (C, 7, 7).

    Grouped convolutions have `in` per group on both sides.
    """
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if path in _FLATTENED_CROP:
        return array.reshape(_CROP, _CROP, -1, array.shape[1]).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.transpose()


def from_checkpoint(path: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_checkpoint`: PyTorch's layout -> the one that the model has at `path`."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if path in _FLATTENED_CROP:
        return array.reshape(array.shape[0], -1, _CROP, _CROP).transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.transpose()


def _leaves(module):
    return ("scale", "bias", "mean", "var") if _NORM.search(module) else ("kernel", "bias")


def _translate(module, rows):
    """`module` by the first row that fits it, or None."""
    for pattern, replacement in rows:
        if found := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), module):
            return replacement.format(*found.groups())
    return None
