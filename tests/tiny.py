"""A dataset of painted rectangles and a detector small enough to compile in seconds, for tests of training."""
import json

import cv2
import numpy as np

from htd_jax import config as config_lib


def write_dataset(folder, count=12, side=64, seed=0):
    """Writes `count` images of `side` pixels with one to three rectangles of two classes, and their COCO JSON."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(0, 60, (side, side, 3), np.uint8)
        for _ in range(rng.integers(1, 4)):
            label = int(rng.integers(2))
            x, y, w, h = (int(v) for v in (*rng.integers(0, side // 2, 2), *rng.integers(side // 4, side // 2, 2)))
            pixels[y:y + h, x:x + w] = ((220, 40, 40), (40, 200, 60))[label]
            annotations.append(dict(id=len(annotations) + 1, image_id=100 + i, category_id=label + 1, bbox=[x, y, w, h],
                                    area=w * h, iscrowd=0))
        images.append(dict(id=100 + i, file_name=f"{i}.png", width=side, height=side))
        cv2.imwrite(str(folder / "images" / f"{i}.png"), pixels)
    categories = [dict(id=1, name="red"), dict(id=2, name="green")]
    (folder / "all.json").write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


# As flags, so that tests in this process and tests of train.py use the same.
SETTINGS = {
    "model.depth": 18, "model.width": 8, "model.norm": "gn", "model.frozen_stages": 0, "model.fpn_channels": 16,
    "model.fc_channels": 32, "model.ba_channels": 36, "model.ba_out_channels": 16,
    "train.nms_pre": 50, "train.proposals": 50, "train.roi_samples": 32, "train.rpn_samples": 32,
    "test.nms_pre": 50, "test.proposals": 50, "test.scale": (64, 64), "data.scale": (64, 64), "data.workers": 1,
    "batch_size": 8, "warmup_steps": 2, "lr": 0.01, "log_every": 1, "total_steps": 5,
}


def settings(folder, **more):
    """{key: value} of a run on the dataset in `folder`; dots in the names of `more` are written as `__`."""
    files = {f"data.{split}.{kind}": str(folder / name) for split in ("train", "val")
             for kind, name in (("annotations", "all.json"), ("images", "images"))}
    return SETTINGS | files | {key.replace("__", "."): value for key, value in more.items()}


def config(folder, **more):
    """The same as a checked ConfigDict."""
    result = config_lib.default_config()
    result.update_from_flattened_dict(settings(folder, **more))
    return config_lib.validate(result)


def flags(folder, **more):
    """The same as arguments of train.py."""
    return [f"--config.{key}={value}" for key, value in settings(folder, **more).items()]
