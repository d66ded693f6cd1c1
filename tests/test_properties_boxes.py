"""Boxes, suppression, matching and sampling beside plain loops, on whatever hypothesis comes upon."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
from drawn import boxes, floats, scores, seeds, whole_boxes
from hypothesis import assume, given, strategies as st

from htd_jax.ops import boxes as box_ops, matching, sampling
from htd_jax.ops.nms import _at_once, _in_parts, multiclass_nms, nms
from htd_jax.ops.soft_nms import soft_nms

COUNT, KEPT = 40, 12
STDS = .1, .1, .2, .2
THRESHOLDS = pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])


# ---- boxes

@given(whole_boxes(COUNT), whole_boxes(7))
def test_iou_of_whole_coordinates_is_exact(a, b):
    for floor in (None, 1e-6):
        expected = [[plain.iou(one, other, floor) for other in b] for one in a]
        np.testing.assert_array_equal(_iou(a, b, floor or 0.0), expected)


@given(boxes(COUNT, kinds=("any", "integer", "outside")), boxes(7, kinds=("any", "huge")))
def test_iou(a, b):
    """Areas are differences of coordinates up to 4000 in float32: boxes with sides of a pixel or more agree to 1e-3."""
    a, b = (np.concatenate([x[:, :2], x[:, 2:] + 1], axis=1) for x in (a, b))
    expected = [[plain.iou(np.float64(one), np.float64(other), 1e-6) for other in b] for one in a]
    np.testing.assert_allclose(_iou(a, b, 1e-6), expected, atol=1e-3)


_iou = jax.jit(box_ops.pairwise_iou, static_argnums=2)


@given(boxes(COUNT, kinds=("any", "integer")), boxes(COUNT, kinds=("any", "integer")))
def test_deltas_lead_to_their_targets(a, b):
    """Within the ratio of 62.5 that decoding allows. The bound is that of float32 in coordinates up to 512."""
    sides = np.concatenate([x[:, 2:] - x[:, :2] for x in (a, b)], axis=1)
    ratio = sides[:, 2:] / np.maximum(sides[:, :2], 1e-9)
    usable = (sides > 1e-2).all(axis=1) & (ratio < 62).all(axis=1) & (ratio > 1 / 62).all(axis=1) & (b >= 0).all(axis=1)
    assume(usable.any())
    deltas, back = map(np.asarray, _round_trip(a, b))
    assert (np.abs(back - b)[usable] <= 2e-3).all()
    for i in np.flatnonzero(usable):
        expected = plain.encode(a[i], b[i], STDS)
        np.testing.assert_allclose(deltas[i], expected, rtol=2e-4, atol=2e-4 * np.abs(a[i]).max() / sides[i].min())


@jax.jit
def _round_trip(a, b):
    deltas = box_ops.encode(a, b, STDS)
    return deltas, box_ops.decode(a, deltas, STDS, jnp.array([512, 640]))


@given(boxes(COUNT), floats((COUNT, 4), -50, 50), st.sampled_from([(200, 256), (1, 1)]))
def test_decoded_boxes(rois, deltas, size):
    found = np.asarray(_decode(rois, deltas, np.int32(size)))
    expected = np.array([plain.decode(*pair, STDS, size) for pair in zip(rois, deltas)])
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(size) + 2e-6 * 62.5 * float(np.abs(rois).max()))
    assert (found >= 0).all() and (found <= np.tile(size[::-1], 2)).all()


_decode = jax.jit(lambda rois, deltas, size: box_ops.decode(rois, deltas, STDS, size))


@given(whole_boxes(COUNT), st.integers(1, 200))
def test_flipping_twice_is_nothing(rois, width):
    width = jnp.float32(width)
    np.testing.assert_array_equal(box_ops.flip(box_ops.flip(jnp.asarray(rois), width), width), rois)


# ---- suppression

@THRESHOLDS
@given(whole_boxes(COUNT), scores(COUNT), seeds)
def test_nms(threshold, rois, score, seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 1 + seed % 3, COUNT).astype(np.int32)
    score = np.where(rng.random(COUNT) < .2, -np.inf, score).astype(np.float32)
    for form in (_at_once, _in_parts):
        kept, valid = _nms(form, threshold)(rois, score, groups)
        expected = plain.nms(rois, score, np.float32(threshold), KEPT, groups)
        assert np.asarray(kept)[np.asarray(valid)].tolist() == expected


@functools.cache
def _nms(form, threshold):
    return jax.jit(functools.partial(form, iou_threshold=threshold, max_kept=KEPT))


@pytest.mark.parametrize("count", [1, 2, 5000])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_nms_of_identical_boxes_and_of_many(count, threshold):
    """All boxes are one of two, so one of each is kept, the first of its best; none exceeds IoU 1, so all are."""
    rng = np.random.default_rng(count)
    which = np.arange(count) % 2
    rois = np.float32([(-10, -10, 5, 5), (20, -40, 60, 0)])[which]
    score = np.float32(rng.integers(0, 50, count) / 50)
    kept, valid = nms(jnp.asarray(rois), jnp.asarray(score), threshold, min(count, 100))
    kept = np.asarray(kept)[np.asarray(valid)].tolist()
    best_first = sorted(range(count), key=lambda i: -score[i])
    first = [next(i for i in best_first if which[i] == k) for k in range(min(count, 2))]
    assert kept == (best_first[:100] if threshold == 1 else sorted(first, key=best_first.index))


def test_nms_of_nothing():
    kept, valid = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 10)
    assert not valid.any() and kept.shape == (10,)


def test_multiclass_nms_of_nothing():
    for select in (multiclass_nms, soft_nms):
        found = select(jnp.zeros((0, 4)), jnp.zeros((0, 3)), 0.5, 0.05, 10)
        assert not found.valid.any() and found.boxes.shape == (10, 4)


@pytest.mark.parametrize("scores_of", [np.nan, np.inf])
def test_nms_ends_whatever_the_scores(scores_of):
    rois = jnp.asarray(np.random.default_rng(0).uniform(0, 90, (COUNT, 4)), jnp.float32)
    for form in (_at_once, _in_parts):
        kept, valid = _nms(form, 0.5)(rois, jnp.full(COUNT, scores_of, jnp.float32), jnp.zeros(COUNT, jnp.int32))
        assert kept.shape == valid.shape == (KEPT,)


@THRESHOLDS
@given(whole_boxes(COUNT), scores((COUNT, 2)))
def test_multiclass_nms(threshold, rois, score):
    found = _multiclass(threshold)(rois, score)
    flat = [(i, k) for i in range(COUNT) for k in range(2) if score[i, k] > np.float32(.05)]
    picked = plain.nms([rois[i] for i, _ in flat], [score[at] for at in flat], np.float32(threshold), KEPT,
                       [k for _, k in flat])
    _check_detections(found, [(flat[p][0], flat[p][1], score[flat[p]]) for p in picked], rois)


@functools.cache
def _multiclass(threshold):
    return jax.jit(functools.partial(multiclass_nms, iou_threshold=threshold, min_score=.05, max_kept=KEPT))


@THRESHOLDS
@given(whole_boxes(COUNT), scores((COUNT, 2)))
def test_soft_nms(threshold, rois, score):
    picked = plain.soft_nms(rois, score, np.float32(threshold), np.float32(.05), KEPT)
    _check_detections(_soft(threshold)(rois, score), picked, rois)


@functools.cache
def _soft(threshold):
    return jax.jit(functools.partial(soft_nms, iou_threshold=threshold, min_score=.05, max_kept=KEPT))


def test_soft_nms_survives_a_box_that_equals_the_picked_one_and_takes_no_part():
    """-inf * (1 - 1) is nan, which once was the best score for ever after."""
    score = jnp.asarray([[1, 0], [0, .9]], jnp.float32)
    found = soft_nms(jnp.ones((2, 4), jnp.float32).at[:, 2:].set(9), score, 0.5, 0.05, 3)
    assert found.valid.tolist() == [True, True, False] and found.labels[:2].tolist() == [0, 1]


def _check_detections(found, picked, rois):
    valid = np.asarray(found.valid)
    assert valid.tolist() == [k < len(picked) for k in range(KEPT)]
    np.testing.assert_array_equal(np.asarray(found.scores)[valid], [value for _, _, value in picked])
    assert np.asarray(found.labels)[valid].tolist() == [label for _, label, _ in picked]
    np.testing.assert_array_equal(np.asarray(found.boxes)[valid], rois[[roi for roi, _, _ in picked]].reshape(-1, 4))
    assert (np.asarray(found.scores)[~valid] == 0).all()


# ---- matching and sampling

@given(whole_boxes(COUNT), whole_boxes(6), st.integers(0, 6), seeds)
def test_matching(rois, truth, used, seed):
    valid = np.random.default_rng(seed).random(COUNT) < .8
    proposals, anchors = _match(rois, valid, truth, np.arange(6) < used)
    assert proposals.tolist() == plain.assign_proposals(rois, valid, truth[:used], np.float32(.5))
    limits = map(np.float32, (.7, .3, .3))
    assert anchors.tolist() == plain.assign_anchors(rois, valid, truth[:used], *limits)


@jax.jit
def _match(rois, valid, truth, truth_valid):
    return (matching.assign_proposals(rois, valid, truth, truth_valid, 0.5),
            matching.assign_anchors(rois, valid, truth, truth_valid))


@pytest.mark.parametrize("rule", sampling.RULES)
@pytest.mark.parametrize("length", [3, 90])
@given(st.data())
def test_sampling(rule, length, data):
    assigned = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=length, max_size=length)), np.int32)
    found = _sample(rule)(assigned, jax.random.key(data.draw(st.integers(0, 99))))
    index, positive, valid = map(np.asarray, found)
    positives, negatives = (np.flatnonzero(group).tolist() for group in (assigned > 0, assigned == 0))
    n_pos = min(len(positives), 5)
    n_neg = min(len(negatives), 16 - n_pos)
    assert positive.tolist() == [k < n_pos for k in range(16)]
    assert valid.tolist() == [k < n_pos + n_neg for k in range(16)]
    parts = index[:n_pos].tolist(), index[n_pos:n_pos + n_neg].tolist()
    for part, candidates, number in zip(parts, (positives, negatives), (n_pos, n_neg)):
        assert part == sorted(set(part)) and set(part) <= set(candidates)
        assert rule == "random" or part == plain.chosen(candidates, number, rule)


@functools.cache
def _sample(rule):
    return jax.jit(lambda assigned, key: sampling.sample(assigned, 16, 5, rule, key))
