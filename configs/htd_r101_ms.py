"""HTD, ResNet-101, multi-scale: 24 epochs, short side 400..1400, long side at most 1600, soft-NMS.

python train.py --config configs/htd_r101_ms.py --workdir runs/htd_r101_ms --config.dtype=bfloat16 \
    --config.init_from=hf:timm/resnet101.tv_in1k

Hardware: 6 accelerators of 32 GB, two images each (batch_size 12); less memory with --config.remat.
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
    config.data.scale = (1600, 800)  # the short side comes from short_range
    config.data.short_range = (400, 1400)
    config.test.nms = "soft"
    return config
