"""Every figure of the original's operators, forward and gradient (tests/golden/ops.npz, see its README)."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax.ops import (
    anchors,
    boxes,
    deform_conv,
    matching,
    multiclass_nms,
    nms,
    pyramid_crops,
    roi_align,
    soft_nms,
)
from htd_jax.ops.roi_align import axis_weights

with np.load(pathlib.Path(__file__).parent / "golden" / "ops.npz") as file:
    GOLDEN = {name: jnp.asarray(array) for name, array in file.items()}
STDS = {"rpn": (1.0, 1.0, 1.0, 1.0), "s0": (0.1, 0.1, 0.2, 0.2), "s1": (0.05, 0.05, 0.1, 0.1)}


def assert_close(actual, expected, bound=1e-4):
    """Largest error at most `bound` of the expected array's root mean square."""
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.sqrt(np.mean(expected**2))
    assert error <= bound, f"max error / rms = {error:.2e} > {bound:g}"


def channels_last(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


@pytest.mark.parametrize("level", ["p2", "p3", "p5"])
def test_roi_align(level):
    get = lambda name: GOLDEN[f"roi_align/{level}/{name}"]
    features, rois = channels_last(get("feat")), jnp.asarray(get("rois"))
    image, stride = rois[:, 0].astype(int), 1 / float(get("scale"))

    @jax.jit
    def crop(features):
        per_image = jax.vmap(lambda f: roi_align(f, rois[:, 1:], stride))(features)
        return per_image[image, jnp.arange(len(rois))]

    out, backward = jax.vjp(crop, features)
    assert_close(jnp.moveaxis(out, -1, 1), get("out"))
    assert_close(jnp.moveaxis(backward(channels_last(get("grad_out")))[0], -1, 1), get("grad_feat"))


def test_roi_levels():
    levels = jax.jit(pyramid_crops.roi_levels)(GOLDEN["roi_level/rois"][:, 1:])
    np.testing.assert_array_equal(levels, GOLDEN["roi_level/level"])


@pytest.mark.parametrize("case", ["s1", "s2", "groups", "far"])
def test_deform_conv(case):
    get = lambda name: GOLDEN[f"deform_conv/{case}/{name}"]
    stride, padding, dilation, groups = (int(v) for v in get("stride_padding_dilation_groups"))

    @jax.jit
    def conv(x, offset, kernel):
        of_image = lambda x, o: deform_conv(x, o, kernel, stride, padding, dilation, groups)
        return jax.vmap(of_image)(x, offset)

    kernel = jnp.asarray(get("weight").transpose(2, 3, 1, 0))
    out, backward = jax.vjp(conv, channels_last(get("x")), channels_last(get("offset")), kernel)
    assert_close(jnp.moveaxis(out, -1, 1), get("out"))
    grad_x, grad_offset, grad_kernel = backward(channels_last(get("grad_out")))
    assert_close(jnp.moveaxis(grad_x, -1, 1), get("grad_x"))
    assert_close(jnp.moveaxis(grad_offset, -1, 1), get("grad_offset"))
    assert_close(grad_kernel.transpose(3, 2, 0, 1), get("grad_weight"))


@pytest.mark.parametrize("case", ["rpn", "det", "low"])
@pytest.mark.parametrize("grouped", [False, True])
def test_nms(case, grouped):
    get = lambda name: GOLDEN[f"nms/{case}/{name}"]
    groups = jnp.asarray(get("ids")) if grouped else None
    run = jax.jit(nms, static_argnums=(2, 3))
    kept, valid = run(get("boxes"), get("scores"), float(get("iou_threshold")), len(get("boxes")), groups)
    np.testing.assert_array_equal(kept[valid], get("batched_keep" if grouped else "keep"))


@pytest.mark.parametrize("case", ["rpn", "det", "low"])
@pytest.mark.parametrize("grouped", [False, True])
def test_soft_nms(case, grouped):
    get = lambda name: GOLDEN[f"nms/{case}/{name}"]
    ids = get("ids") if grouped else np.zeros(len(get("boxes")), int)
    scores = jnp.where(ids[:, None] == np.arange(ids.max() + 1)[None], get("scores")[:, None], -jnp.inf)
    picked, score, _, valid = jax.jit(soft_nms, static_argnums=(2, 3, 4))(
        get("boxes"), scores, float(get("iou_threshold")), 0.05, len(get("boxes")))
    expected = get("batched_soft_dets" if grouped else "soft_dets")
    assert_close(np.column_stack([picked, score])[valid], expected)


@pytest.mark.parametrize("kind", ["nms", "soft"])
def test_multiclass(kind):
    run = multiclass_nms if kind == "nms" else soft_nms
    picked, score, labels, valid = jax.jit(run, static_argnums=(2, 3, 4))(
        GOLDEN["multiclass/boxes"], GOLDEN["multiclass/scores"][:, :-1], 0.5, 0.05, 100)  # the last is background
    assert valid.all()
    np.testing.assert_array_equal(labels, GOLDEN[f"multiclass/{kind}_labels"])
    assert_close(np.column_stack([picked, score]), GOLDEN[f"multiclass/{kind}_dets"])


@pytest.mark.parametrize("coder", list(STDS))
def test_codec(coder):
    raw, image_size = GOLDEN[f"codec/{coder}/raw"], jnp.array([300, 400])
    proposals, stds = GOLDEN["codec/proposals"], STDS[coder]
    assert_close(boxes.decode(proposals, raw, stds, image_size), GOLDEN[f"codec/{coder}/decoded"])
    assert_close(boxes.encode(proposals, GOLDEN["codec/gts"], stds), GOLDEN[f"codec/{coder}/deltas"])


def test_iou():
    assert_close(boxes.pairwise_iou(GOLDEN["assign/gts"], GOLDEN["assign/proposals"]), GOLDEN["assign/iou"])


def level_shapes():
    return [(GOLDEN["anchors/level0"], 4), (GOLDEN["anchors/level1"], 8), (GOLDEN["anchors/level2"], 16),
            (GOLDEN["anchors/level3"], 32), (GOLDEN["anchors/level4"], 64)]


@pytest.mark.parametrize("level", range(5))
def test_anchors(level):
    expected, stride = level_shapes()[level]
    cells = (expected[:, :2] + expected[:, 2:]) / 2 / stride
    width, height = np.round(cells.max(axis=0) + 1).astype(int).tolist()
    assert_close(anchors.level_anchors(height, width, stride), expected, 1e-6)


def test_assign_anchors():
    shapes = [(256 // s, 320 // s) for s in anchors.STRIDES]
    grid = np.concatenate(anchors.grid_anchors(shapes))
    assert len(grid) == len(GOLDEN["assign/rpn_gt_inds"])
    gts = np.pad(GOLDEN["assign/gts"], ((0, 3), (0, 0)))
    assigned = jax.jit(matching.assign_anchors)(grid, np.ones(len(grid), bool), gts, np.arange(10) < 7)
    np.testing.assert_array_equal(assigned, GOLDEN["assign/rpn_gt_inds"])


@pytest.mark.parametrize("stage, threshold", [("s0", 0.5), ("s1", 0.6)])
def test_assign_proposals(stage, threshold):
    proposals = GOLDEN["assign/proposals"]
    gts = np.pad(GOLDEN["assign/gts"], ((0, 3), (0, 0)))
    assigned = jax.jit(matching.assign_proposals, static_argnums=4)(
        proposals, np.ones(len(proposals), bool), gts, np.arange(10) < 7, threshold)
    np.testing.assert_array_equal(assigned, GOLDEN[f"assign/{stage}_gt_inds"])


def test_roi_align_counts_samples_exactly_when_compiled():
    """RoIs of a whole multiple of 7 cells, against the same samples summed one by one in numpy."""
    cells = 210
    sizes = np.arange(7, 210, 7, dtype=np.float32)
    weights = np.asarray(jax.jit(axis_weights, static_argnums=2)(0 * sizes + 0.5, sizes + 0.5, cells))
    for size, row in zip(sizes, weights):
        n = int(size) // 7
        expected = np.zeros((7, cells))
        for bin_index in range(7):
            for i in range(n):
                position = 0.5 + (bin_index + (i + 0.5) / n) * size / 7
                low = int(position)
                expected[bin_index, low] += (1 - position + low) / n
                expected[bin_index, min(low + 1, cells - 1)] += (position - low) / n
        np.testing.assert_allclose(row, expected, atol=2e-5)
