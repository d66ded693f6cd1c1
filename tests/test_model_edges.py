"""A small detector at the edges: batches of any size, with and without ground truth, proposals and positives."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from original import reference
from original.figures import match
from original.train import observe

from htd_jax.config import default_config
from htd_jax.models import functional
from htd_jax.models.detect import detect
from htd_jax.models.htd import build, trainable
from htd_jax.models.losses import losses
from htd_jax.models.proposals import batch_proposals
from htd_jax.models.resnet import ResNet
from htd_jax.weights import loading

SHAPE, CLASSES, PROPOSALS = (64, 96), 3, 50
LOSSES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_global", "s0.loss_cls", "s0.acc", "s0.loss_bbox",
          "s1.loss_cls", "s1.acc", "s1.loss_bbox", "loss"}


def jit(function):
    """Compiled in half the time; how fast it then runs does not matter here."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


@functools.cache
def settings():
    config = default_config()
    config.model.update(depth=18, width=8, fpn_channels=16, fc_channels=32, ba_channels=36, ba_out_channels=16,
                        num_classes=CLASSES)
    config.train.update(nms_pre=PROPOSALS, proposals=PROPOSALS, rpn_samples=32, roi_samples=32)
    config.test.update(nms_pre=PROPOSALS, proposals=PROPOSALS)
    config.sampling = "first"
    return config


@functools.cache
def parts():
    """(graphdef, state) of the small model, with weights that spread scores and move boxes."""
    model = nnx.eval_shape(lambda: build(settings().model, nnx.Rngs(0)))
    tree = loading.load_into(loading.tree_of(model), reference.draw(model), backbone_only=False)
    return nnx.graphdef(model), jax.tree.map(jnp.asarray, tree)


def batch(counts, slots=8, seed=0):
    """As many images as `counts`, each with so many boxes."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 40, (len(counts), slots, 2))
    boxes = np.float32(np.concatenate([low, low + rng.uniform(8, 24, low.shape)], 2))
    valid = np.arange(slots) < np.array(counts)[:, None]
    return dict(image=reference.images([SHAPE] * len(counts), SHAPE, seed=seed + 1),
                size=np.int32([SHAPE] * len(counts)), padded=np.int32([SHAPE] * len(counts)),
                scale=np.ones((len(counts), 2), np.float32), valid=valid,
                boxes=np.where(valid[..., None], boxes, 0),
                labels=np.int32(rng.integers(0, CLASSES, valid.shape) * valid))


@functools.cache
def gradients_from_proposals():
    """Jitted: params, frozen, batch, key, (boxes, valid) -> ((total, (logs, seen)), gradients)."""
    return jit(jax.value_and_grad(observe(functional.functions(settings()).loss), has_aux=True))


@functools.cache
def params_and_frozen():
    _, params, frozen = nnx.split(nnx.merge(*parts()), trainable(settings().model), ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def proposals(images, seed=5):
    low = np.random.default_rng(seed).uniform(0, 40, (images, PROPOSALS, 2))
    return np.float32(np.concatenate([low, low + 20], 2))


def check_finite(value, logs, gradients):
    assert set(logs) == LOSSES
    assert all(np.isfinite(x) for x in (value, *logs.values())), logs
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("counts, present, positives", [
    ((0, 0), PROPOSALS, 0),  # no ground truth, so no positive
    ((1, 0), 0, 1),  # no proposal, and one RoI, which is a positive
    ((0, 0), 0, 0),  # nothing at all
    ((8, 1), 3, None),  # more ground truth than proposals
    ((8, 3), PROPOSALS, None),
])
def test_losses_and_gradients_are_finite(counts, present, positives):
    given = proposals(2), np.arange(PROPOSALS) < np.full((2, 1), present)
    (value, (logs, seen)), gradients = gradients_from_proposals()(
        *params_and_frozen(), batch(counts), jax.random.key(0), given)
    check_finite(value, logs, gradients)
    if positives is not None:
        assert int(seen["rois"][0].positive.sum()) == int(seen["rois"][1].positive.sum()) == positives
        assert (float(logs["s0.loss_bbox"]) == 0) == (positives == 0)
    if not present:
        assert int(seen["rois"][0].valid.sum()) == sum(counts)


def test_exactly_one_roi_of_the_background():
    given = proposals(2), np.zeros((2, PROPOSALS), bool)
    given[1][0, 0] = True
    (value, (logs, seen)), gradients = gradients_from_proposals()(
        *params_and_frozen(), batch((0, 0)), jax.random.key(0), given)
    check_finite(value, logs, gradients)
    assert [int(rois.valid.sum()) for rois in seen["rois"]] == [1, 1]
    assert float(logs["s0.loss_cls"]) > 0 and gradients["stage0"]["fc_cls"]["kernel"].any()


def test_any_ground_truth_takes_one_compilation():
    step = gradients_from_proposals()
    for counts in ((0, 0), (8, 8), (3, 1)):
        step(*params_and_frozen(), batch(counts), jax.random.key(0), (proposals(2), np.ones((2, PROPOSALS), bool)))
    assert step._cache_size() == 1


@functools.cache
def compiled_losses():
    """Jitted: state, batch -> logs; nothing replaced."""
    graphdef, _ = parts()
    return jit(lambda state, batch: losses(nnx.merge(graphdef, state), batch, jax.random.key(0), settings())[1])


@pytest.mark.parametrize("counts", [(2,), (0,), (3, 0, 1, 8, 5)])
def test_any_number_of_images(counts):
    logs = compiled_losses()(parts()[1], batch(counts))
    assert set(logs) == LOSSES and all(np.isfinite(value) for value in logs.values())


def test_empty_slots_of_ground_truth_change_nothing():
    few, many = batch((3,)), batch((3,))
    for key in ("boxes", "labels", "valid"):
        many[key] = np.pad(many[key], ((0, 0), (0, 24)) + ((0, 0),) * (many[key].ndim - 2))
    logs, padded = (compiled_losses()(parts()[1], each) for each in (few, many))
    for name, value in logs.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-6, err_msg=name)


@functools.cache
def compiled_detect():
    graphdef, _ = parts()
    return jit(lambda state, batch: detect(nnx.merge(graphdef, state), batch, settings()))


def detections(images):
    fields = {key: images[key] for key in ("image", "size", "padded", "scale")}
    return jax.device_get(compiled_detect()(parts()[1], fields))


def listed(found, i):
    valid = found["valid"][i]
    return found["boxes"][i][valid], found["scores"][i][valid], found["labels"][i][valid]


def test_detections_of_a_batch_are_those_of_each_image_alone():
    images = batch((0, 0, 0))
    together = detections(images)
    assert together["valid"].sum() > 30
    for i in range(3):
        alone = detections({key: value[i:i + 1] for key, value in images.items()})
        share, difference = match(listed(together, i), listed(alone, 0))
        assert share == 1 and difference < 1e-5


def test_anchors_beyond_the_originals_padding_never_win():
    shapes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(1, 3 * h * w)).astype(np.float32) for h, w in shapes]
    deltas = [0.1 * rng.normal(size=(1, 3, 4, h, w)).astype(np.float32) for h, w in shapes]
    beyond = [np.repeat((np.arange(h) >= -(-32 // s))[:, None] | (np.arange(w) >= -(-64 // s))[None], 3)
              for (h, w), s in zip(shapes, (4, 8, 16, 32, 64))]
    loud = [np.where(mask, 100, level) for mask, level in zip(beyond, logits)]
    run = jit(lambda levels: batch_proposals(
        levels, list(map(jnp.asarray, deltas)), shapes, jnp.int32([(30, 60)]), jnp.int32([(32, 64)]), settings().test))
    for ours, other in zip(run(logits), run(loud)):
        np.testing.assert_array_equal(ours, other)


def test_scene_context_is_pooled_within_the_originals_padding():
    sfa = nnx.merge(*parts()).sfa
    p6 = jax.random.normal(jax.random.key(0), (2, 3, 4, 16))
    context, _ = sfa(p6, jnp.int32([(128, 192), (192, 256)]))
    for i, x in enumerate((p6[:1, :2, :3], p6[1:])):
        for layer in sfa.convs:
            x = jax.nn.relu(layer(x))
        np.testing.assert_allclose(context[i], x[0].mean((0, 1)), rtol=1e-5)


def with_more_padding(images):
    """The batch in a larger array, as a bucket is; what the original would have padded to is the same."""
    return images | {"image": np.pad(images["image"], ((0, 0), (0, 64), (0, 32), (0, 0)))}


def test_more_padding_changes_no_loss():
    images = batch((3, 8))
    exact, bucket = (compiled_losses()(parts()[1], each) for each in (images, with_more_padding(images)))
    for name, value in exact.items():
        np.testing.assert_allclose(bucket[name], value, rtol=1e-5, err_msg=name)


def test_more_padding_changes_no_detection():
    images = batch((0, 0))
    exact, bucket = detections(images), detections(with_more_padding(images))
    for i in range(2):
        assert len(listed(exact, i)[0]) > 10
        share, difference = match(listed(bucket, i), listed(exact, i))
        assert share == 1 and difference < 1e-5


def test_more_padding_changes_no_map_of_deformable_bottlenecks():
    """Offsets differ from zero here, so samples reach beyond the edge."""
    make = lambda: ResNet(50, width=8, deformable=True, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(make)
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32)**2, state)
    run = jit(lambda state, images, padded: nnx.merge(graphdef, state)(images, padded))
    images = rng.standard_normal((1, 64, 96, 3), np.float32)
    exact = run(state, images, np.int32([SHAPE]))
    bucket = run(state, np.pad(images, ((0, 0), (0, 64), (0, 32), (0, 0))), np.int32([SHAPE]))
    for ours, other in zip(exact, bucket):
        other = other[:, :ours.shape[1], :ours.shape[2]]
        np.testing.assert_allclose(other, ours, atol=1e-5 * float(jnp.abs(ours).max()))
