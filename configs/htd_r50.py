"""HTD, ResNet-50, 12 epochs of COCO train2017 at 1333x800: the published recipe.

python train.py --config configs/htd_r50.py --workdir runs/htd_r50 --config.dtype=bfloat16 \
    --config.init_from=hf:timm/resnet50.tv_in1k

Hardware: 8 accelerators of 16 GB, two images each (batch_size 16). Another batch size scales the rate with it.
Expected hours: not measured. Expected AP: not measured (COCO is not among what this project was developed with).
"""
from htd_jax.config import default_config


def get_config():
    return default_config()
