"""The measuring itself: what is wrong must not pass."""
import numpy as np
import pytest
from original import figures, reference

BOXES = np.float64([[0, 0, 10, 10], [20, 20, 40, 60], [5, 5, 15, 15]])
FOUND = BOXES, np.array([0.9, 0.8, 0.7]), np.array([1, 2, 1])


@pytest.fixture
def archive(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    sampled = {"shape": whole.shape, "every": 5, "sample": whole.reshape(-1)[::5],
               "mean_rms": [whole.mean(), np.sqrt((whole**2).mean())]}
    np.savez(tmp_path / "a.npz", whole=whole, **{f"big/{name}": value for name, value in sampled.items()})
    return whole, figures.Archive(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["whole", "big"])
def test_error_is_the_largest_difference_over_the_rms(archive, name):
    whole, archive = archive
    assert name in archive and archive.error(name, whole) == 0
    wrong = whole.copy()
    wrong[1, 4] += 3  # element 10
    assert archive.error(name, wrong) == pytest.approx(3 / np.sqrt((whole**2).mean()), rel=1e-6)
    assert archive.error(name, wrong[:1]) == 0 < archive.error(name, wrong[:2])
    with pytest.raises(AssertionError, match="shape"):
        archive.error(name, whole.T)


def test_match_asks_for_class_and_place():
    assert figures.match(FOUND, FOUND) == (1, 0)
    boxes, scores, labels = FOUND
    assert figures.match((boxes, scores + 0.01, labels), FOUND) == (1, pytest.approx(0.01))
    assert figures.match((boxes, scores, np.array([1, 2, 2])), FOUND)[0] == pytest.approx(2 / 3)
    assert figures.match((boxes + [[2, 0, 2, 0]], scores, labels), FOUND)[0] == pytest.approx(0)
    assert figures.match(tuple(part[:2] for part in FOUND), FOUND)[0] == pytest.approx(2 / 3)
    twice = tuple(np.concatenate([part, part[:1]]) for part in FOUND)
    assert figures.match(twice, FOUND)[0] == figures.match(FOUND, twice)[0] == pytest.approx(3 / 4)


def test_order_may_differ_only_between_near_ties():
    swapped = tuple(part[[1, 0, 2]] for part in FOUND)
    assert figures.in_order(FOUND, FOUND, 1e-5) == 1
    assert figures.in_order(swapped, FOUND, 1e-5) == pytest.approx(1 / 3)
    assert figures.in_order(swapped, FOUND, 0.2) == 1


@pytest.mark.parametrize("figure, holds", [
    (figures.Figure("a", 1.0, 1.0), True), (figures.Figure("a", 1.1, 1.0), False),
    (figures.Figure("a", np.nan, 1.0), False),
    (figures.Figure("a", 0.98, 0.98, True), True), (figures.Figure("a", 0.97, 0.98, True), False)])
def test_bounds(figure, holds):
    assert figure.holds == holds


def test_weights_are_drawn_from_names():
    tensors = [reference.weight(name, (8, 4, 3, 3)) for name in ("a.weight", "a.weight", "b.weight")]
    np.testing.assert_array_equal(*tensors[:2])
    assert (tensors[0] != tensors[2]).all() and tensors[0].dtype == np.float32
