"""The operators beside torchvision's, where it is installed: what docs/operators.md says is equal."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import yardsticks
from htd_jax import ops

torch, torchvision = yardsticks.torch(), yardsticks.torchvision()
if torchvision is None:
    pytest.skip("torchvision is not installed: operators are not compared with its own", allow_module_level=True)
SIZE = 256, 384
STDS = 0.1, 0.1, 0.2, 0.2


def close(ours, theirs, bound=1e-5):
    """Largest error at most `bound` of their root mean square."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound * np.sqrt(np.mean(theirs**2))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 1, (count, 2)) * (SIZE[1] - 20, SIZE[0] - 20)
    high = np.minimum(low + np.exp(rng.uniform(1, 5, (count, 2))), (SIZE[1], SIZE[0]))
    return np.concatenate([low, high], axis=1).astype(np.float32)


def scored(count, classes=None):
    """Boxes that overlap much, with scores that differ."""
    found = boxes(count // 8).repeat(8, axis=0) + 4 * np.abs(draw(count // 8 * 8, 1)) * np.float32([[0, 0, 1, 1]])
    shape = (len(found),) if classes is None else (len(found), classes)
    ranks = np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape)
    return found, ranks.astype(np.float32) / ranks.size


def test_roi_align_and_its_gradient():
    features, rois, cotangent = draw(16, 24, 8), boxes(50), draw(50, 7, 7, 8, seed=1)
    rois[0] = 30, 30, 30, 60  # without area
    rois[1] = 0, 0, 7 * 16, 14 * 16  # whole numbers of samples
    theirs = torch.tensor(features.transpose(2, 0, 1)[None], requires_grad=True)
    crops = torchvision.ops.roi_align(theirs, [torch.tensor(rois)], 7, 1 / 16, sampling_ratio=-1, aligned=True)
    crops.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    ours, transpose = jax.vjp(lambda f: ops.roi_align(f, jnp.asarray(rois), 16), jnp.asarray(features))
    # Positions up to 24 cells are rounded to 1e-6 of a cell, and these features change by up to 5 from cell to cell.
    close(jnp.moveaxis(ours, -1, 1), crops, 2e-5)
    close(jnp.moveaxis(transpose(jnp.asarray(cotangent))[0], -1, 0)[None], theirs.grad, 2e-5)


def test_nms():
    found, scores = scored(400)
    kept, valid = ops.nms(jnp.asarray(found), jnp.asarray(scores), 0.6, len(found))
    theirs = torchvision.ops.nms(torch.tensor(found), torch.tensor(scores), 0.6)
    assert 50 < len(theirs) < 300 and kept[valid].tolist() == theirs.tolist()


def test_nms_within_groups():
    found, scores = scored(400)
    groups = np.arange(len(found)) % 3
    kept, valid = ops.nms(jnp.asarray(found), jnp.asarray(scores), 0.6, len(found), jnp.asarray(groups))
    theirs = torchvision.ops.batched_nms(torch.tensor(found), torch.tensor(scores), torch.tensor(groups), 0.6)
    assert kept[valid].tolist() == theirs.tolist()


def test_multiclass_nms():
    found, scores = scored(200, classes=5)
    ours = ops.multiclass_nms(jnp.asarray(found), jnp.asarray(scores), 0.5, 0.3, 100)
    row, label = np.nonzero(scores > 0.3)
    pairs = torch.tensor(found[row]), torch.tensor(scores[row, label]), torch.tensor(label)
    best = torchvision.ops.batched_nms(*pairs, 0.5)[:100]
    assert bool(ours.valid.all()) and ours.labels.tolist() == pairs[2][best].tolist()
    np.testing.assert_array_equal(ours.boxes, pairs[0][best])
    np.testing.assert_array_equal(ours.scores, pairs[1][best])


@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 1), (1, 2, 4)])
def test_deform_conv_and_its_gradients(stride, dilation, groups):
    side = {(1, 1): (12, 17), (2, 1): (6, 9), (1, 2): (10, 15)}[stride, dilation]
    arrays = draw(12, 17, 8), 2 * draw(*side, 18, seed=1), draw(3, 3, 8 // groups, 12, seed=2)
    where = dict(stride=stride, padding=1, dilation=dilation)
    ours, transpose = jax.vjp(lambda *a: ops.deform_conv(*a, **where, groups=groups), *map(jnp.asarray, arrays))
    x, offsets, kernel = (torch.tensor(a, requires_grad=True) for a in arrays)
    theirs = torchvision.ops.deform_conv2d(
        x.permute(2, 0, 1)[None], offsets.permute(2, 0, 1)[None], kernel.permute(3, 2, 0, 1), **where)[0]
    cotangent = draw(*side, 12, seed=3)
    theirs.backward(torch.tensor(cotangent.transpose(2, 0, 1)))
    close(ours, theirs.permute(1, 2, 0))
    for gradient, given in zip(transpose(jnp.asarray(cotangent)), (x, offsets, kernel)):
        close(gradient, given.grad)


def test_assignment_without_rescue():
    from torchvision.models.detection._utils import Matcher
    anchors, truth = np.concatenate(ops.grid_anchors([(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)])), boxes(7)
    matched = Matcher(0.7, 0.3, allow_low_quality_matches=False)(
        torchvision.ops.box_iou(torch.tensor(truth), torch.tensor(anchors))).numpy()
    ours = ops.assign_anchors(jnp.asarray(anchors), jnp.ones(len(anchors), bool), jnp.asarray(truth),
                              jnp.ones(7, bool), rescue=2.0)
    np.testing.assert_array_equal(ours, np.where(matched >= 0, matched + 1, np.where(matched == -1, 0, -1)))
    assert (matched >= 0).any() and (matched == -2).any()


@pytest.mark.parametrize("stride", [4, 16, 64])
def test_anchors_before_rounding(stride):
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    generator = AnchorGenerator(((8 * stride,),), ((0.5, 1.0, 2.0),))
    theirs = generator.grid_anchors([(5, 7)], [(torch.tensor(stride), torch.tensor(stride))])[0]
    np.testing.assert_array_equal(np.round(ops.level_anchors(5, 7, stride)), theirs)


def test_codec():
    from torchvision.models.detection._utils import BoxCoder
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    given, truth, deltas = boxes(40), boxes(40, seed=1), 3 * draw(40, 4)
    close(ops.encode(jnp.asarray(given), jnp.asarray(truth), STDS),
          coder.encode_single(torch.tensor(truth), torch.tensor(given)))
    theirs = torchvision.ops.clip_boxes_to_image(coder.decode_single(torch.tensor(deltas), torch.tensor(given)), SIZE)
    close(ops.decode(jnp.asarray(given), jnp.asarray(deltas), STDS, jnp.array(SIZE)), theirs)


def test_iou():
    a, b = boxes(30), boxes(20, seed=1)
    close(ops.pairwise_iou(jnp.asarray(a), jnp.asarray(b)), torchvision.ops.box_iou(torch.tensor(a), torch.tensor(b)))
    empty = jnp.zeros((1, 4))
    assert ops.pairwise_iou(empty, empty)[0, 0] == 0 and np.isnan(ops.pairwise_iou(empty, empty, floor=0.0)[0, 0])
    assert torchvision.ops.box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).isnan().all()
