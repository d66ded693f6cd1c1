"""Large images in tiles: every pixel is covered, tiles overlap, and what several tiles show is found once."""
import itertools

import numpy as np
import pytest

from htd_jax.errors import UserError
from htd_jax.evaluation import tiles


@pytest.mark.parametrize("size, tile, overlap", [
    ((100, 100), (40, 60), .25), ((37, 1000), (64, 64), .2), ((64, 64), (64, 64), .5), ((65, 64), (64, 64), 0),
    ((501, 499), (100, 90), .33)])
def test_tiles_cover_the_image_and_overlap(size, tile, overlap):
    corners = tiles.corners(size, tile, overlap)
    seen = np.zeros(size, int)
    for y, x in corners:
        assert y == 0 or y + tile[0] <= size[0]
        assert x == 0 or x + tile[1] <= size[1]
        seen[y:y + tile[0], x:x + tile[1]] += 1
    assert seen.min() == 1
    for axis, starts in enumerate(zip(*corners)):
        for a, b in itertools.pairwise(sorted(set(starts))):
            assert a + tile[axis] - b >= overlap * tile[axis] - 1


@pytest.mark.parametrize("tile, overlap, words", [
    ((0, 5), .2, r"tile \(=\(0, 5\)\)"), ((5.0, 5), .2, "tile"), ((5,), .2, "tile"), ((5, 5), 1, r"overlap \(=1\)"),
    ((5, 5), -.1, "overlap")])
def test_impossible_tiles_are_named(tile, overlap, words):
    with pytest.raises(UserError, match=words):
        tiles.corners((10, 10), tile, overlap)


def detections(*rows):
    """Of (x1, y1, x2, y2, score, label)."""
    rows = np.float32(rows).reshape(-1, 6)
    return dict(boxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].astype(np.int32))


def test_one_object_in_two_tiles_is_one():
    left = detections((60, 10, 90, 40, .8, 1), (0, 0, 9, 9, .3, 0))
    right = detections((10, 10, 40, 40, .9, 1), (10, 10, 40, 40, .7, 2))
    found = tiles.merge([left, right], [(0, 0), (0, 50)], .5)
    assert found["scores"].tolist() == pytest.approx([.9, .7, .3]) and found["labels"].tolist() == [1, 2, 0]
    assert found["boxes"].tolist() == [[60, 10, 90, 40], [60, 10, 90, 40], [0, 0, 9, 9]]


def test_nothing_and_much():
    assert len(tiles.merge([detections(), detections()], [(0, 0), (0, 9)], .5)["scores"]) == 0
    many = detections(*[(10 * i, 0, 10 * i + 9, 9, 1 - i / 1000, 0) for i in range(600)])
    assert tiles.merge([many], [(0, 0)], .5)["boxes"].tolist() == many["boxes"].tolist()
