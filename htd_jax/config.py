"""The configuration: every key with its default, and the check that a configuration is usable.

`default_config()` is HTD-R50 as published; each file of `configs/` changes a few keys of it. What the keys mean is
written beside each, and for users in `docs/training.md`.
"""
import difflib
import functools
import json
import math
import operator
import os
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from htd_jax.errors import UserError


def default_config() -> ConfigDict:
    """HTD-R50 on COCO, the published recipe; a placeholder has no value until it is set."""
    return ConfigDict(dict(
        seed=0,  # of initialisation, shuffling, flips and sampling
        batch_size=16,  # images an update, over all devices
        total_steps=placeholder(int),  # length in updates; wins over total_epochs
        total_epochs=12,
        optimizer="sgd",  # or 'adamw', which needs an lr of its own, about 1e-4
        schedule="step",  # or 'cosine': after warm-up, half a cosine down to 0 at the end
        milestones=(8, 11),  # of 'step': epochs after which lr is divided by 10
        lr=placeholder(float),  # exactly this; unset: base_lr * batch_size / base_batch
        base_lr=0.02,
        base_batch=16,
        warmup_steps=500,  # 0: none
        warmup_factor=0.001,  # share of lr at the first step
        momentum=0.9,  # of 'sgd'
        weight_decay=1e-4,
        clip_norm=0.0,  # largest norm of the gradient; 0: not clipped
        accumulate=1,  # equal micro-batches that one update averages
        ema=0.0,  # decay of the averaged weights, which are then evaluated; 0: none
        remat=False,  # recompute activations in the backward pass: less memory, more time
        dtype="float32",  # or 'bfloat16': of the computation; parameters and boxes stay float32
        sampling="random",  # or 'first', 'stride'
        init_from="",  # weights to start from: any form of --checkpoint, or 'hf:NAME'
        new_classifier=False,  # init_from may have another number of classes; its classifiers are then left out
        checkpoint_every=1000,  # steps
        keep_checkpoints=3,  # the last ones; the best by AP is kept beside them
        eval_every=0,  # steps; 0: at the end only
        patience=0,  # evaluations without a better AP after which training ends; 0: it never does
        log_every=50,  # steps
        compilation_cache="~/.cache/htd_jax",  # folder of what has been compiled; '': none
        distributed=False,  # several processes, found through the launcher (docs/training.md)
        model=_model(),
        train=dict(nms_pre=2000, proposals=2000, rpn_samples=256, roi_samples=512),
        test=_test(),
        data=_data(),
    ))


def _model():
    return dict(
        depth=50,  # 18, 34, 50, 101
        groups=1,
        base_width=64,  # of one group of the 3x3 convolutions: 4 in ResNeXt-101 64x4d
        width=64,  # channels of the stem; the four stages scale with it
        stride_in_1x1=False,  # a block's stride in its first 1x1 convolution: weights made by Caffe, Detectron2, Keras
        deformable=False,  # deformable 3x3 convolutions in layer2..4
        norm="frozen_bn",  # or 'gn', for training from scratch
        frozen_stages=1,  # 1: stem and layer1; 0: none
        roi_align="auto",  # its form: the device's own; or 'products', of any device, or the kernels for 'tpu' or 'gpu'
        fpn_channels=256,
        fc_channels=1024,
        ba_channels=576,
        ba_out_channels=1024,
        ba_groups=36,
        num_classes=placeholder(int),  # without background; unset: as many as the annotations have
    )


def _test():
    return dict(
        nms_pre=1000,
        proposals=1000,
        scale=(1333, 800),  # (long, short)
        nms="hard",  # or 'soft'
        nms_iou=0.5,
        score=0.05,
        max_detections=100,
        tta=False,
        tta_scales=((1333, 800), (1333, 640)),
        tta_flip=True,
        batch_size=1,  # images at a time
    )


def _data():
    coco = "data/coco"
    return dict(
        source="coco",  # or 'yolo', 'voc', 'tfds', 'demo'
        root="",  # one folder of COCO's, YOLO's or VOC's layout; the paths below win where they are set
        val_split="val",  # of root: or 'test'
        holdout=0.1,  # share of root's training images that validate where it has neither val nor test
        train=dict(annotations=f"{coco}/annotations/instances_train2017.json", images=f"{coco}/train2017"),
        val=dict(annotations=f"{coco}/annotations/instances_val2017.json", images=f"{coco}/val2017"),
        tfds=dict(name="coco/2017", dir=""),
        scale=(1333, 800),  # (long, short)
        short_range=placeholder(tuple),  # (lo, hi) of the short side: multi-scale training
        pad_to="bucket",  # or 'exact': next multiple of 32, as the reference
        flip=0.5,  # probability
        augment=dict(  # off in the published recipes
            scale=placeholder(tuple),  # (lo, hi) of a factor on `scale`, then a window of the padded shape
            crop=0.0,  # probability of a crop that keeps all boxes
            colour=0.0,  # strength of jitter, 0 to 1
        ),
        workers=2,  # threads that decode
    )


def _one_of(*values):
    return (lambda v: v in values), "one of " + ", ".join(map(str, values))


def _number(low, high=math.inf, open_low=False):
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
    return (lambda v: (low < v if open_low else low <= v) and v <= high and math.isfinite(v)), bounds


def _is_pair(value):
    return len(value) == 2 and all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in value)


_POSITIVE, _AT_LEAST_0, _SHARE = _number(1), _number(0), _number(0, 1)
_SCALE = (lambda v: _is_pair(v) and v[0] >= v[1]), "two whole numbers (long, short), long >= short"
_RANGE = (lambda v: _is_pair(v) and v[0] <= v[1]), "two whole numbers (lo, hi), lo <= hi"

# key -> (is the value possible, what it must be). A key that is unset is not asked.
_RULES = {
    **dict.fromkeys(("batch_size total_steps total_epochs base_batch accumulate checkpoint_every keep_checkpoints "
                     "log_every test.proposals test.nms_pre test.max_detections test.batch_size train.nms_pre "
                     "train.proposals train.rpn_samples train.roi_samples model.groups model.base_width model.width "
                     "model.fpn_channels model.fc_channels model.ba_channels model.ba_out_channels model.ba_groups "
                     "model.num_classes").split(), _POSITIVE),
    **dict.fromkeys("seed warmup_steps weight_decay clip_norm eval_every patience data.workers".split(), _AT_LEAST_0),
    **dict.fromkeys(("momentum warmup_factor data.flip data.augment.crop data.augment.colour test.score "
                     "test.nms_iou").split(), _SHARE),
    **dict.fromkeys(("lr", "base_lr"), _number(0, open_low=True)),
    **dict.fromkeys(("data.scale", "test.scale"), _SCALE),
    "ema": ((lambda v: 0 <= v < 1), "at least 0 and below 1"),
    "data.short_range": _RANGE,
    "data.augment.scale": ((lambda v: len(v) == 2 and all(isinstance(f, (int, float)) for f in v) and 0 < v[0] <= v[1]),
                           "two factors (lo, hi), 0 < lo <= hi"),
    "test.tta_scales": ((lambda v: len(v) > 0 and all(isinstance(s, tuple) and _SCALE[0](s) for s in v)),
                        "a tuple of scales ((long, short), ...)"),
    "milestones": ((lambda v: all(isinstance(m, (int, float)) and m > 0 for m in v) and list(v) == sorted(v)),
                   "epochs in ascending order"),
    "optimizer": _one_of("sgd", "adamw"),
    "schedule": _one_of("step", "cosine"),
    "dtype": _one_of("float32", "bfloat16"),
    "sampling": _one_of("random", "first", "stride"),
    "model.roi_align": _one_of("auto", "portable", "products", "tpu", "gpu"),
    "model.depth": _one_of(18, 34, 50, 101),
    "model.norm": _one_of("frozen_bn", "gn"),
    "model.frozen_stages": _one_of(0, 1, 2, 3, 4),
    "test.nms": _one_of("hard", "soft"),
    "data.source": _one_of("coco", "yolo", "voc", "tfds", "demo"),
    "data.val_split": _one_of("val", "test"),
    "data.holdout": ((lambda v: 0 < v < 1), "above 0 and below 1"),
    "data.pad_to": _one_of("bucket", "exact"),
}


def flatten(config: ConfigDict | dict) -> dict[str, Any]:
    """{dotted key: value}; unset placeholders are None and lists become tuples."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = _tuples(value)
    return flat


def differences(config: ConfigDict, other: ConfigDict, whose: str) -> dict[str, str]:
    """{key: 'KEY VALUE (WHOSE: VALUE)'} of all keys that are set in `config` and have another value in `other`."""
    theirs = flatten(other)
    return {key: f"{key} {value} ({whose}: {theirs[key]})" for key, value in flatten(config).items()
            if value not in (None, theirs[key])}


def expand_home(config: ConfigDict) -> ConfigDict:
    """Returns `config` with the home folder in place of `~` in every path."""
    paths = {key: os.path.expanduser(value) for key, value in flatten(config).items()
             if isinstance(value, str) and value.startswith("~") and key != "compilation_cache"}
    config.update_from_flattened_dict(paths)
    return config


def validate(config: ConfigDict) -> ConfigDict:
    """Returns `config`; UserError names a key that is unknown, missing, ill-typed or impossible, and its value."""
    given = flatten(config)
    for key, value in given.items():
        _check(key, value)
    for key in sorted(flatten(_defaults()).keys() - given.keys()):
        raise UserError(f"config.{key} is missing; start from htd_jax.config.default_config()")
    for key, divisor in (("batch_size", "accumulate"), ("model.ba_channels", "model.ba_groups")):
        if given[key] % given[divisor]:
            raise UserError(f"config.{key} (={given[key]}) must be divisible by config.{divisor} (={given[divisor]})")
    _check_combinations(given)
    return config


def _check_combinations(given):
    """Raises UserError where a key needs another one."""
    if given["optimizer"] == "adamw" and given["lr"] is None:
        raise UserError("config.optimizer is 'adamw', but base_lr is for SGD; set config.lr, for example 1e-4")
    if given["patience"] and not given["eval_every"]:
        raise UserError(f"config.patience (={given['patience']}) counts evaluations; set config.eval_every too")
    if given["data.augment.scale"] and given["data.short_range"]:
        raise UserError("config.data.augment.scale and config.data.short_range both vary the size of images; set one")
    if given["model.stride_in_1x1"] and given["model.depth"] < 50:
        raise UserError(f"config.model.stride_in_1x1 needs blocks with 1x1 convolutions: depth 50 or 101, not "
                        f"{given['model.depth']}")


_defaults = functools.cache(default_config)  # only read


def _check(key, value):
    """Raises UserError where a key is unknown or cannot have this value."""
    known = flatten(_defaults())
    if key not in known:
        raise UserError(f"config.{key} (={value!r}) is no known key{suggestion(key, known)}")
    if value is None and known[key] is None:
        return
    *parents, last = key.split(".")
    wanted = functools.reduce(operator.getitem, parents, _defaults()).get_type(last)
    fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise UserError(f"config.{key} is {value!r}; it must be of type {wanted.__name__}")
    possible, words = _RULES.get(key, (lambda v: True, ""))
    if not possible(value):
        raise UserError(f"config.{key} is {value!r}; it must be {words}")


def suggestion(key: str, known: Iterable[str]) -> str:
    """'; did you mean config.KEY?' for the nearest of the known keys, or ''."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean config.{close[0]}?" if close else ""


def learning_rate(config: ConfigDict) -> float:
    """The rate after warm-up: `lr` exactly, where set, else base_lr scaled linearly from base_batch to batch_size."""
    return config.lr if config.lr is not None else config.base_lr * config.batch_size / config.base_batch


def to_json(config: ConfigDict) -> str:
    """The text of config.json: nested objects, tuples as lists, unset keys as null."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The configuration that `to_json` wrote; keys that it does not have keep their default.

    Raises UserError where the text is no JSON object or has a key or value that `validate` refuses.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UserError(f"config.json is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise UserError(f"config.json must be a JSON object of keys, not {type(given).__name__}")
    config = default_config()
    for key, value in flatten(given).items():
        _check(key, value)
        config.update_from_flattened_dict({key: value})
    return validate(config)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
