"""Sizes, boxes and padding."""
import numpy as np
import pytest

from htd_jax.data import images, padding, transforms

SCALES = [((1333, 800), None), ((512, 320), None), ((1600, 800), None), ((1600, 800), (400, 1400)),
          ((512, 320), (200, 600))]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_boxes_are_scaled_then_clipped_then_flipped():
    boxes = np.float32([[10, 20, 50, 60], [-8, 0, 30, 500]])
    scale, size = np.float32([2, 0.5]), (100, 150)
    np.testing.assert_array_equal(transforms.transform_boxes(boxes, scale, size), [[20, 10, 100, 30], [0, 0, 60, 100]])
    flipped = transforms.transform_boxes(boxes, scale, size, flip=True)
    np.testing.assert_array_equal(flipped, [[50, 10, 130, 30], [90, 0, 150, 100]])
    assert flipped.dtype == np.float32
    np.testing.assert_array_equal(boxes[1], [-8, 0, 30, 500])


def test_no_boxes():
    assert transforms.transform_boxes(np.zeros((0, 4), np.float32), (1, 1), (10, 10), True).shape == (0, 4)


def test_flipping_twice_is_nothing(rng):
    boxes = np.sort(rng.uniform(0, 90, (7, 2, 2)), 1).reshape(7, 4).astype(np.float32)
    once = transforms.transform_boxes(boxes, (1, 1), (100, 100), True)
    np.testing.assert_allclose(transforms.transform_boxes(once, (1, 1), (100, 100), True), boxes, atol=1e-5)


def test_published_buckets():
    assert padding.buckets((1333, 800)) == ((1344, 800), (800, 1344))
    assert padding.buckets((512, 320)) == ((512, 320), (320, 512))
    assert padding.buckets((224, 224)) == ((224, 224),)
    shapes = padding.buckets((1600, 800), (400, 1400))
    assert len(shapes) == 10 and shapes[0] == (1600, 608) and shapes[-1] == (1408, 1600)


@pytest.mark.parametrize("scale, short_range", SCALES)
@pytest.mark.parametrize("landscape", [False, True])
def test_some_bucket_holds_every_batch_of_one_orientation(rng, scale, short_range, landscape):
    shapes = padding.buckets(scale, short_range)
    used = set()
    for _ in range(200):
        drawn = np.sort(rng.integers(1, 3000, (4, 2)), 1).tolist()
        short = scale[1] if short_range is None else int(rng.integers(*short_range, endpoint=True))
        sizes = [images.resized_shape(*(size if landscape else size[::-1]), (scale[0], short)) for size in drawn]
        shape = padding.padded_shape(sizes, "bucket", shapes)
        assert (np.max(sizes, 0) <= shape).all() and shape[0] % 32 == shape[1] % 32 == 0
        used.add(shape)
    assert used <= set(shapes)


def test_exact_padding():
    assert padding.padded_shape([(800, 1067)], "exact", ()) == (800, 1088)
    assert padding.padded_shape([(800, 1067), (666, 1333)], "exact", ()) == (800, 1344)


def test_bucket_is_the_smallest_that_holds():
    shapes = padding.buckets((1600, 800), (400, 1400))
    assert padding.padded_shape([(1200, 1600)], "bucket", shapes) == (1216, 1600)
    assert padding.padded_shape([(1200, 1600), (1300, 1500)], "bucket", shapes) == (1408, 1600)
    with pytest.raises(ValueError, match="one orientation"):
        padding.padded_shape([(800, 1344), (1344, 800)], "bucket", padding.buckets((1333, 800)))


@pytest.mark.parametrize("counts, expected", [([], 8), ([0], 8), ([8, 3], 8), ([9], 16), ([93, 1], 96)])
def test_slots(counts, expected):
    assert padding.slots(counts) == expected


def test_pad_rows():
    padded = padding.pad_rows(np.ones((2, 4), np.float32), 5)
    assert padded.shape == (5, 4) and padded.dtype == np.float32 and padded.sum() == 8
