"""Curves, the best score, confusions and the cost of errors: hand-made cases, pycocotools and tidecv."""
import itertools

import numpy as np
import pytest

from htd_jax.evaluation import coco, curves, errors, matches


def truth(*boxes, images=2, classes=3):
    """Ground truth from (image, class, bbox[, crowd])."""
    return {"images": [{"id": i} for i in range(images)],
            "categories": [{"id": k, "name": f"class {k}"} for k in range(classes)],
            "annotations": [{"image_id": i, "category_id": k, "bbox": list(box), "iscrowd": int(any(crowd))}
                            for i, k, box, *crowd in boxes]}


def results(*rows):
    """COCO results from (image, class, bbox, score)."""
    return [{"image_id": i, "category_id": k, "bbox": list(box), "score": score} for i, k, box, score in rows]


def matched(ground, found):
    return matches.read(coco.evaluation(ground, found))


A, B = (0, 0, 100, 100), (200, 200, 100, 100)
NEAR_A, FAR = (0, 0, 100, 40), (500, 500, 10, 10)  # IoU .4 with A; IoU 0 with all


@pytest.fixture
def each_kind():
    """One image with an object of class 0 (A) and one of class 1 (B), and a detection of every kind, best first."""
    return truth((0, 0, A), (0, 1, B), (1, 2, A, True)), results(
        (0, 0, A, .9), (0, 0, A, .8), (0, 0, NEAR_A, .7), (0, 0, B, .6), (0, 1, FAR, .5), (0, 1, NEAR_A, .4),
        (1, 2, A, .3))


def test_every_kind_of_error_is_told(each_kind):
    found = matched(*each_kind)
    order = np.argsort(-found.score)
    kinds = [matches.KINDS[k] for k in found.kind[order]]
    assert kinds == ["right", "duplicate", "localisation", "class", "background", "both", "ignored"]
    assert found.took[order].tolist() == [0, -1, -1, -1, -1, -1, -1]
    assert found.near[order].tolist() == [-1, -1, 0, 1, -1, -1, -1]
    assert found.taken.tolist() == [True, False, False]


def random_set(seed=0, images=120, classes=4, crowds=.05, digits=2):
    """Objects, and detections of them that are shifted, doubled, misnamed or invented."""
    rng, boxes, found = np.random.default_rng(seed), [], []
    for i in range(images):
        for _ in range(rng.integers(0, 6)):
            box, k = np.concatenate([rng.uniform(0, 300, 2), rng.uniform(8, 100, 2)]), int(rng.integers(classes))
            boxes.append((i, k, box.tolist(), rng.random() < crowds))
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                moved = np.maximum(box + rng.normal(0, rng.choice([1, 8, 20]), 4), 2).tolist()
                found.append((i, k if rng.random() < .85 else int(rng.integers(classes)), moved, rng.beta(4, 2)))
        for _ in range(rng.poisson(1)):
            box = np.concatenate([rng.uniform(0, 300, 2), rng.uniform(8, 100, 2)]).tolist()
            found.append((i, int(rng.integers(classes)), box, rng.beta(2, 5)))
    return truth(*boxes, images=images, classes=classes), results(*((*row[:3], round(row[3], digits)) for row in found))


@pytest.mark.parametrize("seed", [0, 1])
def test_precision_at_recalls_is_that_of_the_coco_api(seed):
    evaluation = coco.evaluation(*random_set(seed))
    found = matches.read(evaluation)
    for label in range(4):
        expected = evaluation.eval["precision"][0, :, label, 0, -1]
        own = curves.of_class(found, label)
        np.testing.assert_allclose(curves.precision_at_recalls(own), expected, rtol=0, atol=1e-15)
        assert curves.average_precision(own) == pytest.approx(expected.mean(), abs=1e-15)


def test_best_threshold_is_the_best_of_all_cuts():
    ground, rows = random_set()
    metrics = coco.score(ground, rows)
    positives = sum(not a["iscrowd"] for a in ground["annotations"])

    def f1(threshold):
        found = matched(ground, [row for row in rows if row["score"] >= threshold])
        return 2 * (found.kind == matches.RIGHT).sum() / (found.counted.sum() + positives)

    cuts = {threshold: f1(threshold) for threshold in {row["score"] for row in rows}}
    assert metrics["best_f1"] == pytest.approx(max(cuts.values()), abs=1e-12)
    assert cuts[metrics["best_f1_score_threshold"]] == pytest.approx(metrics["best_f1"], abs=1e-12)


def test_best_threshold_by_hand():
    ground = truth((0, 0, A), (1, 0, A), (1, 1, B))
    metrics = coco.score(ground, results((0, 0, A, .9), (0, 0, FAR, .8), (1, 0, A, .7), (1, 0, FAR, .1)))
    assert metrics["best_f1_score_threshold"] == .7 and metrics["best_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["best_f1_score_threshold_per_class"] == {"class 0": .7, "class 1": -1, "class 2": -1}


def test_equal_scores_are_cut_together():
    curve = curves.curve(np.array([.5, .5, .5]), np.array([True, False, False]), 1)
    assert curves.best_threshold(curve) == (.5, 2 / 4)
    assert curves.f1_at(curve, np.array([.4, .5, .6])).tolist() == [.5, .5, 0]


def test_nothing_found_or_nothing_to_find_has_no_best_threshold():
    for ground, rows in ((truth((0, 0, A)), []), (truth(), results((0, 0, A, .9))), (truth(images=0), [])):
        metrics = coco.score(ground, rows)
        assert (metrics["best_f1_score_threshold"], metrics["best_f1"]) == (-1, -1)


def test_calibration_by_hand():
    found = matched(truth((0, 0, A), (1, 0, A)), results((0, 0, A, .92), (1, 0, A, .98), (1, 0, FAR, .41)))
    bins, error = curves.calibration(found)
    assert [(b.low, b.count, round(b.score, 6), b.precision) for b in bins] == [(.4, 1, .41, 0), (.9, 2, .95, 1)]
    assert error == pytest.approx((1 * .41 + 2 * .05) / 3)
    assert curves.calibration(matched(truth(), [])) == ([], -1)


def test_confusion_by_hand(each_kind):
    found = matched(*each_kind)
    counts = np.zeros((4, 4), int)
    counts[0, 0], counts[1, 0] = 1, 1  # the hit, and B taken for class 0
    counts[3, 0] = 2  # duplicate and localisation error
    assert errors.confusion(found, 3, .55).tolist() == counts.tolist()
    counts[3, 1] = 2
    assert errors.confusion(found, 3, .0).tolist() == counts.tolist()
    counts = np.zeros((4, 4), int)
    counts[0, 3] = counts[1, 3] = 1
    assert errors.confusion(found, 3, .95).tolist() == counts.tolist()


# tidecv 1.0.1 and hotcoco 1.3.0 on `random_set(0, crowds=0, digits=6)`: count, and AP50 gained
TIDE = {"class": (22, .055939701758), "localisation": (93, .247272280407), "both": (20, .007789961067),
        "duplicate": (16, .003378686581), "background": (150, .029971081801), "missed": (99, .093009911375)}


def test_costs_are_those_of_tide():
    costs = errors.costs(matched(*random_set(crowds=0, digits=6)), 4)
    assert {c.kind: c.count for c in costs} == {kind: count for kind, (count, _) in TIDE.items()}
    np.testing.assert_allclose([c.ap50 for c in costs], [TIDE[c.kind][1] for c in costs], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["both", "duplicate", "background"])
def test_cost_is_what_the_coco_api_gains_without_these_detections(kind):
    ground, rows = random_set(3)
    found = matched(ground, rows)
    wrong = found.kind == matches.KINDS.index(kind)
    keys = {(i, k, s, *b) for i, k, s, b in zip(found.image[wrong], found.label[wrong], found.score[wrong],
                                                found.box[wrong].tolist())}
    kept = [r for r in rows if (r["image_id"], r["category_id"], r["score"], *r["bbox"]) not in keys]
    assert len(kept) == len(rows) - wrong.sum()
    gain = coco.score(ground, kept)["AP50"] - coco.score(ground, rows)["AP50"]
    cost = {c.kind: c.ap50 for c in errors.costs(found, 4)}[kind]
    assert cost == pytest.approx(max(0, gain), abs=1e-12)


def test_a_class_of_which_all_is_missed_costs_its_share():
    costs = errors.costs(matched(truth((0, 0, A), (0, 1, B)), results((0, 0, A, .9))), 3)
    assert {c.kind: c.ap50 for c in costs if c.ap50} == {"missed": pytest.approx(.5)}


def test_order_of_the_annotations_does_not_matter():
    ground, rows = random_set(2, images=30)
    turned = {**ground, "annotations": ground["annotations"][::-1]}
    a, b = (matched(g, rows) for g in (ground, turned))
    for name in ("score", "kind"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert all(x <= y for x, y in itertools.pairwise(b.true_image))
