"""HTD, ResNet-101, 24 epochs at 1333x800, soft-NMS.

The original's file of this name trains multi-scale by mistake; its released weights were trained at this one scale, as
its author confirmed. The multi-scale recipe is configs/htd_r101_ms.py.

python train.py --config configs/htd_r101.py --workdir runs/htd_r101 --config.dtype=bfloat16 \
    --config.init_from=hf:timm/resnet101.tv_in1k

Hardware: 6 accelerators of 16 GB, two images each (batch_size 12).
Expected hours: not measured. Expected AP: not measured.
"""
from htd_jax.config import default_config


def get_config():
    config = default_config()
    config.model.depth = 101
    config.batch_size = config.base_batch = 12
    config.base_lr = 0.015
    config.total_epochs = 24
    config.milestones = (16, 22)
    config.test.nms = "soft"
    return config
