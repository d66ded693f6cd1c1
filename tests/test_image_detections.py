"""The detections of one image: as arrays, one by one, as a part of them, drawn, and for other tools."""
import sys

import numpy as np
import pytest

from htd_jax.data import Category
from htd_jax.errors import UserError
from htd_jax.evaluation.image_detections import Detection, ImageDetections

BOXES = np.float32([[10, 20, 50, 60], [100, 100, 300, 200], [0, 0, 5, 5]])
CATEGORIES = Category(3, "ant"), Category(7, "bee")


@pytest.fixture
def found():
    return ImageDetections(BOXES, np.float32([.75, .5, .25]), np.int32([1, 0, 1]), CATEGORIES, "street.jpg",
                           lambda: np.full((240, 320, 3), 60, np.uint8))


def test_each_is_a_detection(found):
    assert list(found) == [Detection("bee", 1, 0.75, (10.0, 20.0, 50.0, 60.0)),
                           Detection("ant", 0, .5, (100.0, 100.0, 300.0, 200.0)),
                           Detection("bee", 1, .25, (0.0, 0.0, 5.0, 5.0))]
    assert len(found) == 3 and found[-1].score == .25 and found.names == ["bee", "ant", "bee"]
    with pytest.raises(IndexError):
        found[3]


@pytest.mark.parametrize("which, rows", [
    (slice(1), [0]), (slice(None, None, 2), [0, 2]), (np.array([False, True, True]), [1, 2]),
    ([True, False, True], [0, 2]),
    (np.array([2, 0]), [2, 0]), (np.zeros(3, bool), [])])
def test_parts(found, which, rows):
    part = found[which]
    assert isinstance(part, ImageDetections) and list(part) == [found[i] for i in rows]
    np.testing.assert_array_equal(part.boxes, BOXES[rows])


def test_above_a_score_includes_it(found):
    assert [d.score for d in found.above(.5)] == [.75, .5]
    assert found.above(0) == found and not found.above(1)


def test_equal_is_what_holds_the_same_detections(found):
    assert found == list(found) and found == found[:] and found != found[:2] and found != "ant"


def test_coco_results_have_original_ids(found):
    assert found[:2].to_coco(42) == [
        dict(image_id=42, category_id=7, bbox=[10, 20, 40, 40], score=.75),
        dict(image_id=42, category_id=3, bbox=[100, 100, 200, 100], score=.5)]
    assert found.to_coco()[0]["image_id"] == "street.jpg"


def test_drawing_shows_the_boxes(found):
    drawn = np.asarray(found[1:2].draw()).astype(int)
    assert drawn.shape == (240, 320, 3)
    assert abs(drawn[200, 200] - 60).max() > 40 and (drawn[220, 200] == 60).all()  # the box's edge, and outside
    assert (np.asarray(found[:0].draw()) == 60).all()


def test_supervision_where_it_is_missing(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r'pip install "htd_jax\[supervision\]"'):
        found.to_supervision()


def test_supervision(found):
    pytest.importorskip("supervision", reason="supervision is not installed")
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, BOXES)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    assert theirs.class_id.tolist() == [1, 0, 1] and theirs.data["class_name"].tolist() == ["bee", "ant", "bee"]
    assert len(found[:0].to_supervision()) == 0
