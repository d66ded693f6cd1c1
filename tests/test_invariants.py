"""What must not matter to a detector: the order of a batch, its neighbours, how many boxes, which size, which dtype."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from original.figures import match
from test_model_edges import (
    CLASSES,
    PROPOSALS,
    batch,
    compiled_losses,
    detections,
    gradients_from_proposals,
    jit,
    listed,
    params_and_frozen,
    parts,
    proposals,
    settings,
)

from htd_jax.detector import Detector
from htd_jax.errors import UserError
from htd_jax.models import functional
from htd_jax.models.losses import losses

ORDER = [2, 0, 1]


def rows(images, order):
    return {key: value[np.array(order)] for key, value in images.items()}


# ---- neighbours

def test_permuting_a_batch_permutes_its_detections():
    images = batch((0, 0, 0))
    found, permuted = detections(images), detections(rows(images, ORDER))
    for new, old in enumerate(ORDER):
        for a, b in zip(listed(permuted, new), listed(found, old)):
            np.testing.assert_array_equal(a, b)


def test_permuting_a_batch_changes_no_loss():
    images = batch((3, 0, 1, 8, 5))
    logs, permuted = (compiled_losses()(parts()[1], each) for each in (images, rows(images, [3, 1, 4, 0, 2])))
    for name, value in logs.items():
        np.testing.assert_allclose(permuted[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("pixels", [0, 255])
def test_an_empty_image_changes_nobody_else(pixels):
    images = batch((0, 0, 0))
    found = detections(images)
    images["image"][1] = pixels
    others = detections(images)
    for i in (0, 2):
        for a, b in zip(listed(others, i), listed(found, i)):
            np.testing.assert_array_equal(a, b)
    assert np.isfinite(others["boxes"]).all() and np.isfinite(others["scores"]).all()


def test_ground_truth_of_one_image_moves_no_roi_of_another():
    given = proposals(2), np.ones((2, PROPOSALS), bool)
    seen = [gradients_from_proposals()(*params_and_frozen(), batch(counts), jax.random.key(0), given)[0][1][1]
            for counts in ((3, 0), (3, 5))]
    first = [jax.tree.map(lambda x: np.asarray(x)[0], each["rois"][0]) for each in seen]
    jax.tree.map(np.testing.assert_array_equal, *first)


def test_a_hundred_boxes():
    logs = compiled_losses()(parts()[1], batch((100, 1, 0), slots=104))
    assert all(np.isfinite(value) for value in logs.values()) and logs["s0.loss_bbox"] > 0


# ---- images

@pytest.fixture(scope="module")
def detector():
    config = settings().copy_and_resolve_references()
    config.test.update(scale=(96, 64), score=0.01)
    graphdef, state = parts()
    return Detector(config, jax.tree.map(jnp.asarray, nnx.to_pure_dict(state) if isinstance(state, nnx.State)
                                         else state), [(i, f"class {i}") for i in range(CLASSES)])


@pytest.mark.parametrize("height, width", [(1, 1), (33, 4000), (4000, 33), (1, 3000), (64, 96)])
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_any_size_and_content(detector, height, width, kind):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = {"black": np.zeros_like(noise), "white": np.full_like(noise, 255), "noise": noise}[kind]
    for found in detector.predict(image, score=0):
        x1, y1, x2, y2 = found.box
        assert 0 <= found.score <= 1 and 0 <= found.label_id < CLASSES
        slack = 1e-5 * max(height, width)
        assert -slack <= x1 <= x2 <= width + slack and -slack <= y1 <= y2 <= height + slack


@pytest.mark.parametrize("value", [np.nan, np.inf, .5])
def test_float_pixels_are_refused(detector, value):
    with pytest.raises(UserError, match="float32 .9, 9, 3."):
        detector.predict(np.full((9, 9, 3), value, np.float32))


# ---- numbers

@functools.cache
def losses_in(dtype):
    config = settings().copy_and_resolve_references()
    config.dtype = dtype
    abstract = functional.functions(config).abstract
    graphdef, _ = nnx.split(abstract)
    return graphdef, lambda state, batch: losses(nnx.merge(graphdef, state), batch, jax.random.key(0), config)[1]


def in_float32(tree):
    return all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype, x64", [("float32", True), ("bfloat16", False),
                                        pytest.param("bfloat16", True, marks=pytest.mark.slow)])
def test_boxes_scores_and_losses_are_float32_in_any_mode(dtype, x64):
    """Also where JAX has 64 bits, in which a stray constant would make them float64."""
    config = settings().copy_and_resolve_references()
    config.dtype = dtype
    functions = functional.functions(config)
    images = batch((2, 0))
    views = {key: images[key] for key in ("image", "size", "padded", "scale")}
    with jax.enable_x64(x64):
        params, frozen = jax.eval_shape(functions.init)
        assert in_float32(params)
        of_params = jax.value_and_grad(functions.loss, has_aux=True)
        (total, logs), gradients = jax.eval_shape(of_params, params, frozen, images, jax.random.key(0))
        found = jax.eval_shape(functions.detect, (params, frozen), views)
    assert total.dtype == jnp.float32 and in_float32(logs) and in_float32(gradients)
    assert found["boxes"].dtype == found["scores"].dtype == jnp.float32 and found["labels"].dtype == jnp.int32


@pytest.mark.slow
def test_64_bits_change_no_loss_and_no_detection():
    images = batch((3, 2))
    once = compiled_losses()(parts()[1], images), detections(images)
    with jax.enable_x64(True):
        again = compiled_losses()(parts()[1], images), detections(images)
    for name, value in once[0].items():
        np.testing.assert_allclose(again[0][name], value, rtol=1e-6, err_msg=name)
    for i in range(2):
        share, difference = match(listed(again[1], i), listed(once[1], i))
        assert share == 1 and difference < 1e-6


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_losses_of_float32():
    """Of losses that are means over anchors or classes; which RoIs a stage samples may differ."""
    images = batch((3, 2))
    graphdef, run = losses_in("bfloat16")
    single, half = compiled_losses()(parts()[1], images), jit(run)(parts()[1], images)
    for name in ("loss_rpn_cls", "loss_rpn_bbox", "loss_global"):
        np.testing.assert_allclose(half[name], single[name], rtol=0.03, err_msg=name)
    np.testing.assert_allclose(half["loss"], single["loss"], rtol=0.1)


def test_the_same_call_gives_the_same_bits():
    images, given = batch((3, 0)), (proposals(2), np.ones((2, PROPOSALS), bool))
    calls = [gradients_from_proposals()(*params_and_frozen(), images, jax.random.key(0), given) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *calls)
    found = [detections(images) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *found)
