"""The benchmark that trains torchvision's Faster R-CNN on own data."""
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from benchmarks import faster_rcnn, yardsticks
from htd_jax.data import open_dataset, pipeline
from htd_jax.errors import UserError
from htd_jax.models.htd import normalise
from htd_jax.models.resnet import ResNet
from htd_jax.training import schedule
from htd_jax.weights import files, loading

needs_torchvision = pytest.mark.skipif(yardsticks.torchvision() is None, reason="torchvision is not installed")


def config(folder, **more):
    return tiny.config(folder, model__norm="frozen_bn", model__width=64, **more)


def test_without_torchvision_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(faster_rcnn, "torchvision", lambda: None)
    with pytest.raises(UserError, match="^needs torchvision: pip install torchvision$"):
        faster_rcnn.compare(config(tmp_path), begun=0.0)


@needs_torchvision
@pytest.mark.slow
def test_it_trains_and_scores_by_the_flags_of_train(tmp_path):
    tiny.write_dataset(tmp_path, count=4)
    flags = tiny.flags(tmp_path, model__norm="frozen_bn", model__width=64, batch_size=2, total_steps=2)
    done = subprocess.run([sys.executable, "-m", "benchmarks.faster_rcnn", "--config", "configs/finetune.py",
                           "--config.init_from=", *flags], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["steps"]) == (4, 2) and 0 <= found["AP"] <= found["AP50"] <= 1
    assert "step 2/2: loss" in done.stderr


@needs_torchvision
def test_a_batch_is_given_in_its_own_pixels(tmp_path):
    tiny.write_dataset(tmp_path, count=2)
    given = config(tmp_path, batch_size=2, data__scale=(96, 48))
    batch = next(pipeline.train_batches(open_dataset(given, "train"), given))
    images, targets = yardsticks.images(batch), yardsticks.targets(batch)
    assert [tuple(image.shape) for image in images] == [(3, 48, 48)] * 2 and batch["image"].shape[1:3] == (96, 64)
    np.testing.assert_allclose(images[1].permute(1, 2, 0).numpy() * 255, batch["image"][1, :48, :48], atol=1e-4)
    assert [len(target["boxes"]) for target in targets] == batch["valid"].sum(1).tolist()
    assert np.array_equal(targets[0]["labels"].numpy() - 1, batch["labels"][0][batch["valid"][0]])


@needs_torchvision
def test_detections_return_to_pixels_of_the_original_image():
    torch = yardsticks.torch()
    found = dict(boxes=torch.tensor([[2.0, 4, 6, 8]]), scores=torch.tensor([0.5]), labels=torch.tensor([1]))
    ours = faster_rcnn._in_original(found, np.float32([0.5, 2]))
    assert ours["boxes"].tolist() == [[4, 2, 12, 4]] and ours["labels"].tolist() == [0]


@needs_torchvision
def test_rate_and_clipping_are_those_of_train(tmp_path):
    """By one weight whose gradient is 10: clipped to 4, it moves by the rate."""
    torch, given = yardsticks.torch(), config(tmp_path, total_steps=40, schedule="cosine", warmup_steps=10)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    batch = dict(image=np.zeros((1, 32, 32, 3), np.uint8), size=[(32, 32)], boxes=[], labels=[], valid=[])
    rate = float(schedule.learning_rate(given, 4)(25))
    faster_rcnn._step(lambda *_: dict(loss=10 * weight.sum()), optimizer, rate, batch, clip_norm=4.0)
    assert weight.item() == pytest.approx(-4 * rate, rel=1e-5)


@needs_torchvision
@pytest.mark.slow
@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_its_backbone_computes_what_ours_does(tmp_path, stride_in_1x1):
    """From the same file: C5 of the same pixels, and which of its weights are learnt."""
    ours = ResNet(50, frozen_stages=2, stride_in_1x1=stride_in_1x1, rngs=nnx.Rngs(0))
    files.write(tmp_path / "w.safetensors", loading.export({"backbone": loading.tree_of(ours)}))
    given = config(tmp_path, model__depth=50, model__frozen_stages=2, model__stride_in_1x1=stride_in_1x1,
                   init_from=str(tmp_path / "w.safetensors"))
    model = faster_rcnn.detector(given, 3)
    rng = np.random.default_rng(0)
    batch = dict(image=rng.integers(0, 256, (1, 64, 96, 3), np.uint8), size=np.int32([[64, 96]]))
    images, _ = model.transform(yardsticks.images(batch))
    theirs = model.backbone.body(images.tensors)["3"].detach().numpy()
    c5 = jax.jit(lambda image, size: ours(normalise(image, size))[-1])(batch["image"], batch["size"])
    np.testing.assert_allclose(np.moveaxis(theirs, 1, -1), c5, atol=1e-5 * np.abs(c5).max())
    learnt = {name.split(".")[0] for name, w in model.backbone.body.named_parameters() if w.requires_grad}
    assert learnt == {"layer3", "layer4"}
