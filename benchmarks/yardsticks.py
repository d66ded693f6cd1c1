"""What ours is measured beside: PyTorch's and torchvision's operators on the same shapes, where they are installed."""
import functools

import jax
import numpy as np


@functools.cache
def torch():
    """The torch module, or None where there is none, or where it sees no GPU beside JAX's."""
    try:
        import torch
    except ImportError:
        return None
    return torch if jax.default_backend() == "cpu" or torch.cuda.is_available() else None


@functools.cache
def torchvision():
    """The torchvision module, or None. One that was built for another torch fails in the middle of its import."""
    try:
        import torchvision
    except (ImportError, RuntimeError):
        return None
    return torchvision if torch() else None


def device():
    """The device that is measured, by torch's name."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def tensor(array, dtype=None):
    """A numpy or JAX array as torch's, on the device that is measured."""
    return torch().from_numpy(np.array(array, np.float32)).to(device=device(), dtype=dtype)


def images(batch):
    """The images of a batch as torchvision's detectors take them: a list of [3, h, w], 0 to 1, without padding."""
    pixels = tensor(batch["image"]).permute(0, 3, 1, 2) / 255
    return [image[:, :height, :width] for image, (height, width) in zip(pixels, batch["size"])]


def targets(batch):
    """The ground truth of a batch as torchvision's detectors take it; label 0 is background."""
    return [dict(boxes=tensor(boxes[valid]), labels=tensor(labels[valid], torch().int64) + 1)
            for boxes, labels, valid in zip(batch["boxes"], batch["labels"], batch["valid"])]


def waiting(function, *arguments):
    """A call without arguments that ends when the device is done."""
    def call():
        with torch().no_grad():
            function(*arguments)
        wait()
    return call


def wait():
    """Until the GPU, where there is one, has done everything."""
    if jax.default_backend() != "cpu":
        torch().cuda.synchronize()


def conv_p2(image=(800, 1344), channels=256):
    """The yardstick of the CPU: one 3x3 convolution, 256 to 256, on a P2 of 200 x 336. None without torch."""
    if not torch():
        return None
    layer = torch().nn.Conv2d(channels, channels, 3, padding=1)
    return waiting(layer, torch().randn(1, channels, image[0] // 4, image[1] // 4))


def faster_rcnn(what, batch, classes=81):
    """A call of torchvision's Faster R-CNN R50-FPN under bfloat16 autocast on a batch of `inputs.batch`.

    'train': one step of SGD; 'detect': images in, boxes out. None without torchvision or GPU.
    """
    if not torchvision() or jax.default_backend() == "cpu":
        return None
    model = torchvision().models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=classes).cuda().train(what == "train")
    inputs = images(batch)
    autocast = functools.partial(torch().autocast, "cuda", dtype=torch().bfloat16)
    if what == "detect":
        def detect():
            with torch().no_grad(), autocast():
                model(inputs)
            wait()
        return detect
    truth = targets(batch)
    optimizer = torch().optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def train():
        with autocast():
            loss = sum(model(inputs, truth).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()
    return train
