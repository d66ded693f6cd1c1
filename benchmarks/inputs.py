"""Random inputs of the sizes that occur: pyramids, RoIs, ground truth, batches of images."""
import jax
import numpy as np

from htd_jax.ops.pyramid_crops import STRIDES


def boxes(count, image, rng, smallest=16, largest=600):
    """Boxes float32 `[count, 4]` within `image` (h, w): log-uniform sizes, which puts about half on P2."""
    height, width = image
    largest = max(smallest, min(largest, height, width))
    size = np.exp(rng.uniform(np.log(smallest), np.log(largest), count))
    aspect = np.exp(rng.uniform(-0.5, 0.5, count))
    half = np.stack([size / aspect, size * aspect], axis=1) / 2
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return np.clip(corners, 0, [width, height, width, height]).astype(np.float32)


def pyramid(image, channels, rng, dtype):
    """P2..P5 of one image (h, w), each `[H, W, channels]`, normal."""
    shapes = [(-(-image[0] // s), -(-image[1] // s), channels) for s in STRIDES]
    return [jax.numpy.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def batch(count, image, rng, truths=0, slots=None, classes=80):
    """A batch as the pipeline makes it: `count` images (h, w) of noise; with ground truth where `truths` an image."""
    pair = lambda values, dtype: np.tile(np.asarray([values], dtype), (count, 1))
    result = dict(image=rng.integers(0, 256, (count, *image, 3), np.uint8), size=pair(image, np.int32),
                  padded=pair(image, np.int32), scale=pair((1, 1), np.float32))
    if truths:
        slots = slots or truths
        result |= dict(boxes=np.stack([boxes(slots, image, rng) for _ in range(count)]),
                       labels=rng.integers(0, classes, (count, slots)).astype(np.int32),
                       valid=np.tile(np.arange(slots) < truths, (count, 1)))
    return result
