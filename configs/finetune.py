"""HTD-R50 for your own images: a short run from an ImageNet backbone, or from an HTD checkpoint (docs/own-data.md).

python train.py --config configs/finetune.py --workdir runs/mine --config.data.root=mine

Hardware: anything; the small images make two CPU cores enough. Measured there on blood cells (docs/own-data.md): 300
steps took 37 minutes and gave AP .538, AP50 .911. On an accelerator use more pixels and steps, such as
--config.data.scale='(1333, 800)' --config.test.scale='(1333, 800)' --config.total_steps=2000 --config.dtype=bfloat16.
"""
from htd_jax.config import default_config


def get_config():
    config = default_config()
    config.update(dict(
        batch_size=4, total_steps=400, base_lr=0.005, base_batch=4, schedule="cosine", warmup_steps=40,
        warmup_factor=0.01, clip_norm=10.0, eval_every=100, checkpoint_every=100, log_every=10,
        init_from="hf:timm/resnet50.tv_in1k",
    ))
    config.model.frozen_stages = 2  # a small set cannot teach edges and textures better than ImageNet has
    config.train.update(dict(nms_pre=1000, proposals=500, roi_samples=128))
    config.test.update(dict(nms_pre=500, proposals=300, scale=(416, 320), batch_size=4))
    config.data.scale = (416, 320)
    return config
