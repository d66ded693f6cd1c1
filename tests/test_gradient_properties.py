"""Where no gradient may flow: exactly zero, not small."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from htd_jax import config as config_lib
from htd_jax.models import functional
from htd_jax.models.ba import BA
from htd_jax.models.ba_loss import ba_loss
from htd_jax.models.pgraph import prototypes
from htd_jax.models.proposals import propose
from htd_jax.models.targets import RoIs, refined_proposals
from htd_jax.ops.pyramid_crops import crop_all_levels, crop_own_level

SHAPES = ((16, 16), (8, 8), (4, 4), (2, 2))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def boxes(count):
    corners = jnp.abs(draw(count, 2)) * 10
    return jnp.concatenate([corners, corners + 20], axis=1)


def detector():
    """The functions of a small detector of which the stem and two layers are frozen, and its parameters."""
    config = config_lib.default_config()
    config.update_from_flattened_dict(tiny.SETTINGS | {"model.num_classes": 2, "model.frozen_stages": 2})
    functions = functional.functions(config)
    return functions, *jax.jit(functions.init)()


def is_zero(gradients):
    return all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def total(arrays):
    return sum((x * draw(*x.shape, seed=k)).sum() for k, x in enumerate(jax.tree.leaves(arrays)))


def test_into_proposals():
    size, levels = jnp.array([64, 64]), [draw(h * w * 3, seed=k) for k, (h, w) in enumerate(SHAPES)]
    deltas = [draw(3, 4, *shape) for shape in SHAPES]
    found = lambda logits, deltas: propose(logits, deltas, SHAPES, size, 20, 10)[:2]
    assert is_zero(jax.grad(lambda *given: total(found(*given)), argnums=(0, 1))(levels, deltas))


def test_into_refined_proposals():
    none = jnp.zeros(5, bool)
    rois = RoIs(boxes(5), jnp.zeros(5, jnp.int32), draw(5, 4), ~none, ~none, none, jnp.arange(5))
    moved = lambda deltas: refined_proposals(rois, deltas, (0.1, 0.1, 0.2, 0.2), jnp.array([64, 64]))[0]
    assert is_zero(jax.grad(lambda deltas: total(moved(deltas)))(draw(5, 4)))


@pytest.mark.parametrize("form", ["auto", "products"])
def test_into_roi_coordinates(form):
    pyramid = [draw(h, w, 4, seed=k) for k, (h, w) in enumerate(SHAPES)]
    own = lambda rois: crop_own_level(pyramid, rois, form)
    every = lambda rois: (own(rois), crop_all_levels(pyramid, rois, own(rois), form))
    assert is_zero(jax.grad(lambda rois: total(every(rois)))(boxes(6)))


def test_into_prototypes():
    fc_cls = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
    assert is_zero(nnx.grad(lambda layer: total(prototypes(layer)))(fc_cls))


def test_from_negatives_into_ba():
    ba, positive = BA(8, 12, 8, 4, rngs=nnx.Rngs(0)), jnp.arange(20)[None] < 3
    loss = lambda crops: ba_loss(ba, crops, jnp.zeros(positive.shape, int), draw(1, 8), draw(1, 20, 4), positive)
    gradient = jax.jit(jax.grad(loss))(draw(1, 4, 20, 7, 7, 8))
    assert is_zero(gradient[:, :, 3:]) and not is_zero(gradient[:, :, :3])


def test_into_frozen_stages():
    functions, params, frozen = detector()
    assert {"stem", "layer1", "layer2"} <= frozen["backbone"].keys()
    model = nnx.merge(nnx.graphdef(functions.abstract), params, frozen)
    graphdef, state = nnx.split(model.backbone)
    features = lambda state: total(nnx.merge(graphdef, state)(draw(1, 64, 64, 3)))
    gradients = nnx.to_pure_dict(jax.jit(jax.grad(features))(state))
    assert is_zero([gradients[part] for part in ("stem", "layer1", "layer2")]) and not is_zero(gradients["layer3"])
