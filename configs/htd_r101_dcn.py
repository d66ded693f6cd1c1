"""HTD, ResNet-101 with deformable convolutions in layer2..4, multi-scale, 24 epochs, soft-NMS.

python train.py --config configs/htd_r101_dcn.py --workdir runs/htd_r101_dcn --config.dtype=bfloat16 \
    --config.init_from=hf:timm/resnet101.tv_in1k

Hardware: 6 accelerators of 32 GB, two images each (batch_size 12); less memory with --config.remat.
Expected hours: not measured. Expected AP: the paper's figure is 50.4 (33.2 for small objects) on COCO test-dev, almost
surely with test-time augmentation (--config.test.tta); not measured here.
"""
from htd_jax.config import default_config


def get_config():
    config = default_config()
    config.model.depth = 101
    config.model.deformable = True
    config.batch_size = config.base_batch = 12
    config.base_lr = 0.015
    config.total_epochs = 24
    config.milestones = (16, 22)
    config.data.scale = (1600, 800)  # the short side comes from short_range
    config.data.short_range = (400, 1400)
    config.test.nms = "soft"
    return config
