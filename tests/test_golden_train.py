"""Losses, gradients, samples and targets of one batch beside the original's, from the golden proposals."""
import jax.numpy as jnp
import numpy as np
import pytest
from original import reference, train
from original.figures import same_rows

from htd_jax.ops.sampling import sample


@pytest.fixture(scope="module", params=["htd_r50", pytest.param("htd_r101_dcn", marks=pytest.mark.slow)])
def run(request):
    if reference.find(f"train_{request.param.removeprefix('htd_')}.npz") is None:
        pytest.skip(f"the golden figures of {request.param} are neither in the clone nor beside it")
    return train.run(request.param)


def test_every_loss(run):
    errors = train.loss_errors(run)
    assert len(errors) == 20 and {name: error for name, error in errors.items() if error > train.LOSS} == {}


def test_every_gradient(run):
    errors = train.gradient_errors(run)
    assert {name: norm for name, (norm, _) in errors.items() if norm > train.gradient_bound(name)} == {}
    assert {name: entries for name, (_, entries) in errors.items()
            if entries > train.GRADIENT and not name.startswith(train.ATTENTION)} == {}
    none = set(run.archive.under("grad_none/"))
    assert set(run.gradients) - none == set(errors) | {train.ZERO_IN_THEORY}
    assert np.abs(run.gradients[train.ZERO_IN_THEORY]).max() < 1e-8


def test_what_the_original_gives_no_gradient(run):
    without = set(run.archive.under("grad_none/"))
    unused = {name for name in without if "graph_lvl" in name}  # levels that no RoI is on
    assert unused and all(not run.gradients[name].any() for name in unused)
    assert not (without - unused) & set(run.gradients)  # frozen


def test_own_proposals(run):
    boxes, _, valid = run.seen["proposals"]
    golden, present = train.golden_proposals(run.archive)
    for i in range(len(golden)):
        assert valid[i].sum() == present[i].sum()
        assert same_rows(boxes[i][valid[i]], golden[i][present[i]]) >= 0.99


def test_anchors_sampled(run):
    anchors = train.all_anchors(run)
    chosen, deltas = run.anchors
    for i in range(len(deltas)):
        golden = lambda key, i=i: run.archive[f"rpn.sampling.{i}/{key}"]
        rank = train.positions(run, "rpn", i)
        index, positive, valid = chosen.index[i], chosen.positive[i], chosen.valid[i]
        np.testing.assert_array_equal(rank[index[positive]], golden("pos_inds"))
        np.testing.assert_array_equal(rank[index[valid & ~positive]], golden("neg_inds"))
        np.testing.assert_array_equal(anchors[index[positive]], golden("pos_bboxes"))
        owners = run.batch["boxes"][i][golden("pos_assigned_gt_inds")]
        np.testing.assert_allclose(decoded(anchors[index[positive]], deltas[i][positive]), owners, atol=1e-3)


def decoded(boxes, deltas):
    """The boxes that `deltas` (stds 1) lead to."""
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    centre, size = low + size / 2 + deltas[:, :2] * size, size * np.exp(deltas[:, 2:])
    return np.concatenate([centre - size / 2, centre + size / 2], 1)


@pytest.mark.parametrize("stage", [0, 1])
def test_rois_sampled(run, stage):
    rois = run.seen["rois"][stage]
    for i in range(len(rois.index)):
        golden = lambda key, i=i: run.archive[f"s{stage}.sampling.{i}/{key}"]
        position = train.positions(run, f"s{stage}", i)
        positive, negative = rois.positive[i], rois.valid[i] & ~rois.positive[i]
        np.testing.assert_array_equal(position[rois.index[i][positive]], golden("pos_inds"))
        np.testing.assert_array_equal(position[rois.index[i][negative]], golden("neg_inds"))
        np.testing.assert_array_equal(rois.is_gt[i][positive], golden("pos_is_gt"))
        np.testing.assert_array_equal(rois.labels[i][positive], golden("pos_gt_labels"))
        np.testing.assert_allclose(rois.boxes[i][positive], golden("pos_bboxes"), atol=1e-3)
        np.testing.assert_allclose(rois.boxes[i][negative], golden("neg_bboxes"), atol=1e-3)


@pytest.mark.parametrize("stage", [0, 1])
def test_targets(run, stage):
    rois = run.seen["rois"][stage]
    golden = lambda key: run.archive[f"s{stage}.{key}"]
    valid = rois.valid.reshape(-1)
    np.testing.assert_array_equal(rois.labels.reshape(-1)[valid], golden("labels"))
    np.testing.assert_array_equal(valid[valid], golden("label_weights"))
    np.testing.assert_array_equal(rois.positive.reshape(-1)[valid], golden("bbox_weights")[:, 0])
    scale = np.sqrt(np.mean(golden("bbox_targets")**2))
    assert np.abs(rois.deltas.reshape(-1, 4)[valid] - golden("bbox_targets")).max() <= 1e-4 * scale


def test_number_of_boxes_between_the_stages(run):
    first = run.seen["rois"][0]
    for i in range(len(first.index)):
        assert (first.valid[i] & ~first.is_gt[i]).sum() == len(run.archive[f"s1.proposals.{i}"])


@pytest.mark.parametrize("candidates, wanted", [(1000, 128), (60, 128), (128, 128), (129, 128), (7, 3)])
def test_stride_takes_every_so_manieth(candidates, wanted):
    """`stride`: candidate i * n // k, the positives of it and the negatives each."""
    rng = np.random.default_rng(0)
    assigned = rng.permutation(np.repeat([-1, 0, 1], [50, candidates + 400, candidates]))
    chosen = sample(jnp.asarray(assigned), 4 * wanted, wanted, "stride")
    take = lambda where, k: where[np.arange(k) * len(where) // max(k, 1)]
    positives = take(np.flatnonzero(assigned == 1), min(candidates, wanted))
    negatives = np.flatnonzero(assigned == 0)
    negatives = take(negatives, min(len(negatives), 4 * wanted - len(positives)))
    np.testing.assert_array_equal(chosen.index[chosen.positive], positives)
    np.testing.assert_array_equal(chosen.index[chosen.valid & ~chosen.positive], negatives)
