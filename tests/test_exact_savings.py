"""What a training step leaves out, or computes again, changes neither its losses nor its gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from original.train import by_anchors

from htd_jax.models.ba import BA
from htd_jax.models.ba_loss import AT_ONCE, BETA, ba_loss
from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.models.rpn import RPNHead
from htd_jax.ops import pyramid_crops
from htd_jax.ops.anchors import grid_anchors

CHANNELS = 8


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def check_close(actual, expected, tolerance=1e-5):
    """Arrays or trees of them, to `tolerance` of each array's rms."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=tolerance * float(jnp.sqrt((e**2).mean())))


def pyramid(images, height, width, levels=5):
    """P2.. of images of (height, width)."""
    return [draw(images, -(-height // s), -(-width // s), CHANNELS, seed=s) for s in (4, 8, 16, 32, 64)[:levels]]


def gradients(function, module, *arguments):
    """Of `function(module, *arguments)`, summed with random factors, by the module and the first argument."""
    graphdef, state = nnx.split(module)

    def total(state, first):
        results = jax.tree.leaves(function(nnx.merge(graphdef, state), first, *arguments[1:]))
        return sum((x * draw(*x.shape, seed=k)).sum() for k, x in enumerate(results)), results

    found, results = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(state, arguments[0])
    return results, (nnx.to_pure_dict(found[0]), found[1])


@pytest.mark.parametrize("size", [(96, 160), (320, 512)], ids=["P6 of two rows", "every level"])
def test_the_head_at_sampled_anchors_is_the_head_there(size):
    maps, head = pyramid(2, *size), RPNHead(CHANNELS, rngs=nnx.Rngs(0))
    boxes = np.concatenate(grid_anchors([x.shape[1:3] for x in maps]))
    inside = np.flatnonzero((boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2] < size[1]) & (boxes[:, 3] < size[0]))
    chosen = jnp.asarray([np.random.default_rng(k).permutation(inside)[:60] for k in range(2)])
    chosen = chosen.at[:, -3:].set(inside[-3:])  # of the highest level that has any

    def whole(head, maps, chosen):
        logits, deltas = head(maps)
        logits, deltas = (jnp.concatenate(levels, axis=1) for levels in (logits, list(map(by_anchors, deltas))))
        return jnp.take_along_axis(logits, chosen, axis=1), jnp.take_along_axis(deltas, chosen[..., None], axis=1)

    check_close(gradients(lambda *a: RPNHead.at(*a), head, maps, chosen), gradients(whole, head, maps, chosen))


@pytest.mark.parametrize("positives", [(0, 0), (1, 0), (5, AT_ONCE + 1), (AT_ONCE * 2 + 3,) * 2])
def test_positives_are_regressed_as_if_all_were(positives):
    slots = AT_ONCE * 2 + 3  # not a whole number of parts
    positive = jnp.arange(slots)[None] < jnp.asarray(positives)[:, None]
    ba = BA(CHANNELS, 18, 12, 6, rngs=nnx.Rngs(0))
    crops, context, targets = draw(2, 4, slots, 7, 7, CHANNELS), draw(2, CHANNELS, seed=2), draw(2, slots, 4, seed=3)
    levels = jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, slots)))

    def all_of_them(ba, inputs):
        crops, context = inputs
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        every = jnp.stack([flat(level) for level in jnp.moveaxis(crops, 1, 0)])
        own = every[flat(levels), jnp.arange(2 * slots)]
        deltas = ba(every, own, jnp.repeat(context, slots, axis=0)).reshape(2, slots, 4)
        return masked_sum(smooth_l1(deltas - targets, BETA).sum(axis=-1), positive)

    in_parts = lambda ba, inputs: ba_loss(ba, inputs[0], levels, inputs[1], targets, positive)
    ours, plain = (gradients(form, ba, (crops, context)) for form in (in_parts, all_of_them))
    for _, (by_parameter, _) in (ours, plain):
        by_parameter["att_conv2"].pop("bias")  # 0 in theory: softmax over the levels takes it away
    check_close(ours, plain, 2e-5)
    np.testing.assert_array_equal(jax.jit(in_parts)(ba, (crops, context)), ours[0][0])  # without a gradient


def test_no_slot_for_positives():
    """As `train.roi_samples` below 4 leaves it."""
    ba, crops, context = BA(CHANNELS, 18, 12, 6, rngs=nnx.Rngs(0)), draw(2, 4, 0, 7, 7, CHANNELS), draw(2, CHANNELS)
    empty = jnp.zeros((2, 0), int), context, jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool)
    value, gradient = jax.value_and_grad(lambda crops: ba_loss(ba, crops, *empty))(crops)
    assert value == 0 and gradient.shape == crops.shape


def test_skipped_positives_cost_nothing():
    """Of slots without positives not even a nan comes through: BA is not computed there."""
    ba, crops = BA(CHANNELS, 18, 12, 6, rngs=nnx.Rngs(0)), draw(1, 4, AT_ONCE * 2, 7, 7, CHANNELS)
    crops = crops.at[:, :, AT_ONCE:].set(jnp.nan)
    positive = jnp.arange(AT_ONCE * 2)[None] < 3
    loss = lambda crops: ba_loss(ba, crops, jnp.zeros(positive.shape, int), draw(1, CHANNELS), draw(1, AT_ONCE * 2, 4),
                                 positive)
    value, gradient = jax.jit(jax.value_and_grad(loss))(crops)
    assert value > 0 and np.isfinite(value)
    assert np.isfinite(gradient).all() and (gradient[:, :, 3:] == 0).all() and (gradient[:, :, 0] != 0).any()


def test_both_crops_of_stage_1_are_the_two_kinds_of_crops():
    maps = [x[0] for x in pyramid(1, 256, 320, levels=4)]
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 200, (20, 2)), np.exp(rng.uniform(2, 6, (20, 2)))
    rois = jnp.asarray(np.concatenate([corner, corner + size], axis=1), jnp.float32)
    where = jnp.arange(9) % 3 > 0

    def apart(maps):
        own = pyramid_crops.crop_own_level(maps, rois)
        every = pyramid_crops.crop_all_levels(maps, rois[:9], own[:9])
        return own, jnp.where(where[None, :, None, None, None], every, 0)

    def both(maps):
        return pyramid_crops.crop_own_and_all_levels(maps, rois, where)

    def value_and_gradient(form):
        total = lambda maps: sum((x * draw(*x.shape, seed=k)).sum() for k, x in enumerate(form(maps)))
        return jax.jit(form)(maps), jax.jit(jax.grad(total))(maps)

    check_close(value_and_gradient(both), value_and_gradient(apart))


@pytest.mark.parametrize("padded", [(64, 96), (40, 96), (40, 70), (33, 33)])
def test_gradient_of_extended_edges(padded):
    maps, ends = pyramid(2, 64, 96, levels=4), jnp.asarray([padded, (64, 96)])

    def plain(maps):
        """By indices: beyond the end of the padded map lies its last cell."""
        def one(features, padded, stride):
            rows, columns = (jnp.where(jnp.arange(n) == -(-end // stride), jnp.arange(n) - 1, jnp.arange(n))
                             for n, end in zip(features.shape, padded))
            return features[rows][:, columns]
        return [jnp.stack([one(x, end, stride) for x, end in zip(features, ends)])
                for features, stride in zip(maps, pyramid_crops.STRIDES)]

    def value_and_gradient(form):
        total = lambda maps: sum((x * draw(*x.shape, seed=k)).sum() for k, x in enumerate(form(maps)))
        return form(maps), jax.grad(total)(maps)

    extended = value_and_gradient(lambda maps: pyramid_crops.extend_edges(maps, ends))
    check_close(extended, value_and_gradient(plain), 1e-6)
