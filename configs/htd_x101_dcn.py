"""HTD, ResNeXt-101 64x4d with deformable convolutions in layer2..4, multi-scale, 24 epochs, soft-NMS, test at 1600x800.

python train.py --config configs/htd_x101_dcn.py --workdir runs/htd_x101_dcn --config.dtype=bfloat16 \
    --config.init_from=resnext101_64x4d.pth

The backbone is OpenMMLab's `open-mmlab://resnext101_64x4d`, which must be downloaded.
Hardware: 6 accelerators of 32 GB, two images each (batch_size 12); less memory with --config.remat.
Expected hours: not measured. Expected AP: not measured.
"""
from htd_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(depth=101, groups=64, base_width=4, deformable=True)
    config.batch_size = config.base_batch = 12
    config.base_lr = 0.015
    config.total_epochs = 24
    config.milestones = (16, 22)
    config.data.scale = (1600, 800)  # the short side comes from short_range
    config.data.short_range = (400, 1400)
    config.test.nms = "soft"
    config.test.scale = (1600, 800)
    return config
