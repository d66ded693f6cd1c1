"""Trains torchvision's Faster R-CNN with FPN as train.py trains HTD, so that AP and time stand side by side.

  python -m benchmarks.faster_rcnn --config configs/finetune.py --config.data.root=mine

The flags are train.py's, and so is what they say: the batches with their order, size and flips, the backbone's weights
and frozen layers, SGD and its schedule, the numbers of proposals, samples and detections. Losses and heads are
torchvision's own, in float32; other keys are not read. Prints one JSON object on stdout. Its `seconds_to_first_step`
count from the start of main(), with PyTorch's import.
"""
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import yardsticks
from benchmarks.yardsticks import torch, torchvision
from htd_jax import cli
from htd_jax.data import Dataset, open_dataset, pipeline
from htd_jax.errors import UserError
from htd_jax.evaluation import coco
from htd_jax.training import schedule as schedule_lib
from htd_jax.weights import loading


def main(arguments: list[str]) -> None:
    begun = time.perf_counter()
    cli.check(arguments)
    print(json.dumps(compare(flags.FLAGS.config, begun)))


def compare(config: ConfigDict, begun: float) -> dict:
    """Trains and scores; `begun` is when the program did. Raises UserError where torchvision is absent."""
    if not torchvision():
        raise UserError("needs torchvision: pip install torchvision")
    dataset, validation = (open_dataset(config, split) for split in ("train", "val"))
    if dataset.categories != validation.categories:
        raise UserError("the training set and the validation set list different classes; give both the same list")
    torch().manual_seed(config.seed)
    model = detector(config, len(dataset.categories))
    clock = train(model, dataset, config)
    metrics = coco.score(validation.ground_truth(), list(results(model, validation, config)))
    return dict(AP=metrics["AP"], AP50=metrics["AP50"], images=metrics["images"], steps=clock.steps,
                seconds_training=round(clock.end - clock.start, 1),
                seconds_to_first_step=round(clock.first_step - begun, 1),
                seconds_evaluation=round(time.perf_counter() - clock.end, 1), threads=torch().get_num_threads(),
                torch=torch().__version__, torchvision=torchvision().__version__)


def detector(config: ConfigDict, num_classes: int):
    """torchvision's FasterRCNN, its backbone that of `config`, which makes no image larger or smaller."""
    from torchvision.models.detection import FasterRCNN

    train, test = config.train, config.test
    model = FasterRCNN(
        backbone(config), num_classes + 1,
        rpn_pre_nms_top_n_train=train.nms_pre, rpn_post_nms_top_n_train=train.proposals,
        rpn_pre_nms_top_n_test=test.nms_pre, rpn_post_nms_top_n_test=test.proposals,
        rpn_batch_size_per_image=train.rpn_samples, box_batch_size_per_image=train.roi_samples,
        box_score_thresh=test.score, box_nms_thresh=test.nms_iou, box_detections_per_img=test.max_detections)
    model.transform.resize = lambda image, target: (image, target)  # the batches are resized already
    return model.to(yardsticks.device())


def backbone(config: ConfigDict):
    """ResNet with FPN and frozen batch norms, with the weights of `init_from`; UserError where they do not fit."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    frozen = config.model.frozen_stages
    net = resnet_fpn_backbone(backbone_name=f"resnet{config.model.depth}", weights=None,
                              trainable_layers=4 - frozen if frozen else 5)
    if config.model.stride_in_1x1:
        for block in (block for layer in list(net.body.values())[-4:] for block in layer):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    if config.init_from:
        _load(net.body, config.init_from)
    return net


def _load(body, source):
    tensors = {name.removeprefix("backbone."): yardsticks.tensor(array)
               for name, array in loading.load_tensors(source).items() if name.startswith("backbone.")}
    try:
        body.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"config.init_from {source} does not fit torchvision's ResNet: {error}") from error


class Clock(NamedTuple):
    """Moments of a training, as time.perf_counter() gives them, and its number of steps."""

    start: float
    first_step: float
    end: float
    steps: int


def train(model, dataset: Dataset, config: ConfigDict) -> Clock:
    """All steps of `config`, in place; loss and rate go to stderr every `log_every` of them."""
    epoch = pipeline.steps_per_epoch(dataset, config)
    total, rate = schedule_lib.total_steps(config, epoch), schedule_lib.learning_rate(config, epoch)
    learnt = [weights for weights in model.train().parameters() if weights.requires_grad]
    optimizer = torch().optim.SGD(learnt, lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay)
    moments = [time.perf_counter()]
    with contextlib.closing(pipeline.train_batches(dataset, config)) as batches:
        for step in range(total):
            loss = _step(model, optimizer, float(rate(step)), next(batches), config.clip_norm)
            if step in (0, total - 1):
                yardsticks.wait()
                moments.append(time.perf_counter())
            if step == 0 or (step + 1) % config.log_every == 0:
                _show(f"step {step + 1}/{total}: loss {loss.item():.4f}, lr {rate(step):.2e}", since=moments[0])
    return Clock(moments[0], moments[1], moments[-1], total)


def _show(line, since):
    print(f"{line}, {time.perf_counter() - since:.0f} s", file=sys.stderr, flush=True)


def _step(model, optimizer, rate, batch, clip_norm):
    """One update; returns its loss."""
    (group,) = optimizer.param_groups
    group["lr"] = rate
    loss = sum(model(yardsticks.images(batch), yardsticks.targets(batch)).values())
    optimizer.zero_grad()
    loss.backward()
    if clip_norm:
        torch().nn.utils.clip_grad_norm_(group["params"], clip_norm)
    optimizer.step()
    return loss.detach()


def results(model, dataset: Dataset, config: ConfigDict) -> Iterator[dict]:
    """COCO results of every image of the dataset."""
    ids = [category.id for category in dataset.categories]
    model.eval()
    for batch in pipeline.eval_batches(dataset, config, config.test.batch_size):
        with torch().no_grad():
            found = model(yardsticks.images(batch))
        for row, scale, detections in zip(batch["index"], batch["scale"], found):
            if row >= 0:
                yield from coco.to_results(dataset.record(row).image_id, _in_original(detections, scale), ids)


def _in_original(detections, scale):
    """Detections of one image as ours: boxes in its own pixels, labels that count from 0."""
    boxes, scores, labels = (detections[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
    return dict(boxes=boxes / np.tile(scale, 2), scores=scores, labels=labels - 1, valid=np.ones(len(scores), bool))


if __name__ == "__main__":
    cli.define_config()
    cli.run(main, __doc__)
