"""Scoring against the COCO API's own example, and the inputs on which the bare API stumbles."""
import json

import numpy as np
import pytest

from htd_jax.errors import UserError
from htd_jax.evaluation import coco

OFFICIAL = [.505, .697, .573, .586, .519, .501, .387, .594, .595, .640, .566, .564]


def truth(ids=(1, 2), annotations=(), names=("cat", "dog")):
    return {"images": [{"id": i, "width": 100, "height": 100} for i in ids],
            "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(names)],
            "annotations": list(annotations)}


def box(image_id, category_id=10, bbox=(10, 10, 40, 40), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


@pytest.fixture(scope="module")
def example(shared):
    folder = shared / "data" / "coco_eval"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    return json.loads((folder / "instances_val2014_100.json").read_text()), results


def test_reproduces_the_twelve_numbers_of_the_coco_api_example(example):
    metrics = coco.score(*example)
    np.testing.assert_array_equal([round(metrics[name], 3) for name in coco.METRICS], OFFICIAL)
    assert metrics["images"] == 100
    assert list(metrics["per_class"]) == [c["name"] for c in example[0]["categories"]]
    present = [ap for ap in metrics["per_class"].values() if ap > -1]
    assert 0 < len(present) < 80
    assert np.mean(present) == pytest.approx(metrics["AP"], abs=1e-12)


def test_ids_may_be_of_any_kind_and_annotations_may_be_numbered_from_zero(example):
    ground, results = example
    expected = coco.score(ground, results)
    for kind in (float, "{:012d}".format):
        renamed = {**ground, "images": [{**i, "id": kind(i["id"])} for i in ground["images"]], "annotations": [
            {**a, "image_id": kind(a["image_id"]), "id": n} for n, a in enumerate(ground["annotations"])]}
        assert coco.score(renamed, [{**r, "image_id": kind(r["image_id"])} for r in results]) == expected


def test_every_listed_image_counts():
    boxes = [box(1), box(2)]
    assert coco.score(truth((1, 2), boxes), [box(1, score=.9)])["AR100"] == pytest.approx(.5)
    metrics = coco.score(truth((1, 2, 3), boxes), [box(1, score=.9), box(2, score=.8), box(3, score=.95)])
    assert metrics["images"] == 3
    assert metrics["AP"] < 1  # the best-scored detection lies on an image without objects


def test_perfect_detections_and_filled_in_fields():
    metrics = coco.score(truth(annotations=[box(1), box(2, 20)]), [box(1, score=.9), box(2, 20, score=.4)])
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["APm"] == pytest.approx(1)
    assert (metrics["APs"], metrics["APl"]) == (-1, -1)
    assert metrics["per_class"] == pytest.approx({"cat": 1, "dog": 1})


def test_a_crowd_is_neither_missed_nor_a_false_positive():
    crowd = box(1, bbox=(50, 50, 50, 50), iscrowd=1)
    metrics = coco.score(truth(annotations=[box(1), crowd]),
                         [box(1, bbox=(60, 60, 10, 10), score=.99), box(1, score=.9)])
    assert metrics["AP"] == pytest.approx(1)


def test_no_detections_score_zero_and_no_ground_truth_minus_one():
    nothing = coco.score(truth(annotations=[box(1)]), [])
    assert (nothing["AP"], nothing["AR100"], nothing["per_class"]) == (0, 0, {"cat": 0, "dog": -1})
    unknown = coco.score({**truth(), "annotations": []}, [box(1, score=.5)])
    assert {unknown[name] for name in coco.METRICS} == {-1}
    assert coco.score({k: v for k, v in truth().items() if k != "annotations"}, [])["AP"] == -1
    assert coco.score(truth(ids=()), [])["images"] == 0


def test_a_repeated_class_name_keeps_both_rows():
    metrics = coco.score(truth(annotations=[box(1), box(1, 20)], names=("cat", "cat")), [box(1, score=.5)])
    assert metrics["per_class"] == pytest.approx({"cat": 1, "cat (20)": 0})


def test_results_have_original_ids_corner_and_size():
    detections = {"boxes": np.float32([[1.23456, 2, 11.5, 22.25], [0, 0, 5, 5], [9, 9, 9, 9]]),
                  "scores": np.float32([.123456789, .5, 0]), "labels": np.int32([1, 0, 0]),
                  "valid": np.array([True, True, False])}
    results = coco.to_results("a", detections, (10, 20))
    assert results == [
        {"image_id": "a", "category_id": 20, "bbox": [1.235, 2.0, 10.265, 20.25], "score": .123457},
        {"image_id": "a", "category_id": 10, "bbox": [0, 0, 5, 5], "score": .5}]
    assert json.loads(json.dumps(results)) == results


def test_errors_name_the_culprit():
    with pytest.raises(UserError, match="image_id 7"):
        coco.score(truth(annotations=[box(1)]), [box(7, score=.5)])
    with pytest.raises(UserError, match="category id 99"):
        coco.score(truth(annotations=[box(1, 99)]), [])
    broken = {"boxes": np.full((1, 4), np.nan), "scores": np.ones(1), "labels": np.zeros(1, int),
              "valid": np.ones(1, bool)}
    with pytest.raises(UserError, match="'x.jpg' are not finite"):
        coco.to_results("x.jpg", broken, (1,))
