"""ResNets of other publishers (Detectron, Detectron2, Keras): to torchvision's names and this project's input.

He et al.'s own weights, which all three pass on, were made for BGR pixels less their mean, undivided. `fold_bgr` builds
that into the stem, so that they take what torchvision's take: RGB with the ImageNet mean and deviation.
"""
import logging
import re

import numpy as np

log = logging.getLogger(__name__)

# ImageNet's mean and deviation of RGB pixels, those of models.htd, and the mean that Keras subtracts.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_KERAS_MEAN = (123.68, 116.779, 103.939)
_EPSILON, _KERAS_EPSILON = 1e-5, 1.001e-5  # of batch norm

_PATTERNS = {
    "Detectron": (r"(res_)?conv1(?P<norm>_bn)?_(?P<leaf>[a-z]+)",
                  r"res(?P<stage>\d)_(?P<block>\d+)_(?P<conv>branch1|branch2[abc])(?P<norm>_bn)?_(?P<leaf>[a-z]+)"),
    "Detectron2": (r"stem\.conv1(?P<norm>\.norm)?\.(?P<leaf>\w+)",
                   r"res(?P<stage>\d)\.(?P<block>\d+)\.(?P<conv>conv\d|shortcut)(?P<norm>\.norm)?\.(?P<leaf>\w+)"),
    "Keras": (r"conv1_(conv|(?P<norm>bn))/(?P<leaf>\w+)",
              r"conv(?P<stage>\d)_block(?P<block>\d+)_(?P<conv>\d)_(conv|(?P<norm>bn))/(?P<leaf>\w+)",
              r"(?P<norm>bn_)?conv1/(?P<leaf>\w+)",
              r"(res|(?P<norm>bn))(?P<stage>\d)(?P<block>[a-z])_(?P<conv>branch1|branch2[abc])/(?P<leaf>\w+)"),
}
_SIGNS = {"Detectron": ("conv1_w",), "Detectron2": ("stem.conv1.weight",),
          "Keras": ("conv1_conv/kernel", "conv1/kernel")}
_CONVS = {"branch1": 0, "branch2a": 1, "branch2b": 2, "branch2c": 3, "shortcut": 0,
          **{f"{prefix}{i}": i for prefix in ("", "conv") for i in range(4)}}  # 0: the shortcut's
_LEAVES = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var",
           "kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
           "moving_variance": "running_var"}
_CLASSIFIER = re.compile(r"(fc\d*|pred|linear|predictions|stem\.fc)[._/].*")
_NORM_SCALE = re.compile(r"^(layer.*\.)?(bn\d|downsample\.1)\.weight$")
_BOTTOM_UP = ("backbone.bottom_up.", "bottom_up.")  # of the backbone in Detectron2's detectors

Tensors = dict[str, np.ndarray]


def to_torchvision(tensors: Tensors) -> Tensors:
    """The tensors by torchvision's names, in its layouts, for RGB input; those of no such publisher as they are.

    ImageNet classifiers go. What is no part of the backbone keeps its name, after `detectron2.` where that is its
    publisher.
    """
    bare = {_bare(name): array for name, array in tensors.items()}
    publisher = next((name for name, signs in _SIGNS.items() if any(sign in bare for sign in signs)), None)
    if publisher is None:
        return tensors
    named = {_translate(name, publisher): _layout(array, publisher)
             for name, array in bare.items() if not _CLASSIFIER.fullmatch(name)}
    whole = _with_statistics(named, _KERAS_EPSILON if publisher == "Keras" else _EPSILON)
    bgr = publisher == "Keras" or not named.get("bn1.running_mean", np.zeros(1)).any()
    log.info("names are %s's%s", publisher, "; BGR input is folded into the stem. He et al.'s weights (all but those "
             "from torchvision) want model.stride_in_1x1=True" * bgr)
    return fold_bgr(whole, _KERAS_MEAN if publisher == "Keras" else MEAN) if bgr else whole


def fold_bgr(tensors: Tensors, mean: tuple[float, float, float] = MEAN) -> Tensors:
    """A ResNet for BGR pixels less `mean` (given as RGB) -> the same for RGB with the ImageNet mean and deviation.

    Names are torchvision's, bare or after `backbone.`. Where the means differ, that goes into the first norm's mean:
    exact but for the border, where the padding of the one is not quite that of the other.
    """
    prefix = "backbone." if "backbone.conv1.weight" in tensors else ""
    kernel, norm_mean = f"{prefix}conv1.weight", f"{prefix}bn1.running_mean"
    rgb = tensors[kernel][:, ::-1].astype(np.float64)
    offset = np.einsum("oihw,i->o", rgb, np.subtract(MEAN, mean))
    scaled = rgb * np.reshape(STD, (1, 3, 1, 1))
    return tensors | {kernel: scaled.astype(np.float32),
                      norm_mean: (tensors[norm_mean] - offset).astype(np.float32)}


def _bare(name):
    """Without the prefixes of Detectron2's detectors; what these have beside the backbone is marked as theirs."""
    for prefix in _BOTTOM_UP:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    theirs = name.startswith(("backbone.fpn_", "proposal_generator.", "roi_heads."))
    return f"detectron2.{name}" if theirs else name


def _translate(name, publisher):
    """torchvision's name, or the same where it has none."""
    for pattern in _PATTERNS[publisher]:
        if found := re.fullmatch(pattern, name):
            parts = found.groupdict()
            leaf = _LEAVES.get(parts["leaf"], parts["leaf"])
            if "stage" not in parts:
                return f"{'bn1' if parts['norm'] else 'conv1'}.{leaf}"
            return f"layer{int(parts['stage']) - 1}.{_block(parts['block'], publisher)}.{_conv(parts)}.{leaf}"
    return name


def _block(block, publisher):
    """Counted from 0; Keras counts from 1, in its first versions by letters."""
    return ord(block) - ord("a") if block.isalpha() else int(block) - (publisher == "Keras")


def _conv(parts):
    number, norm = _CONVS[parts["conv"]], bool(parts["norm"])
    return f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{int(norm)}"


def _layout(array, publisher):
    return array.transpose(3, 2, 0, 1) if publisher == "Keras" and array.ndim == 4 else array


def _with_statistics(tensors, epsilon):
    """With mean and variance for every norm, for this project's epsilon, and convolutions' biases in the means."""
    full = dict(tensors)
    for name in [name for name in tensors if _NORM_SCALE.search(name)]:
        norm = name.removesuffix(".weight")
        bias = full.pop(f"{_convolution(norm)}.bias", 0)
        full[f"{norm}.running_mean"] = tensors.get(f"{norm}.running_mean", np.zeros_like(tensors[name])) - bias
        full[f"{norm}.running_var"] = tensors.get(f"{norm}.running_var", np.ones_like(tensors[name]) - epsilon) + (
            epsilon - _EPSILON)
    return full


def _convolution(norm):
    """The convolution before a norm."""
    head, _, last = norm.rpartition(".")
    return f"{head}.0" if last == "1" else norm.replace("bn", "conv")
