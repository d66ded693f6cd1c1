"""Every public operator takes numpy's arrays as it takes JAX's, compiled and not."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from htd_jax import ops

RNG = np.random.default_rng(0)
N, G, K = 30, 5, 3
SIZE, STDS = np.array([100, 120], np.int32), (.1, .1, .2, .2)


def boxes(count):
    corners = RNG.random((count, 2)) * 50
    return np.concatenate([corners, corners + 5 + RNG.random((count, 2)) * 40], axis=1).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


SCORES, ALL_SCORES = RNG.random(N).astype(np.float32), RNG.random((N, K)).astype(np.float32)
ASSIGNED = RNG.integers(-1, 3, N, dtype=np.int32)
ARRAYS = {  # the leading arguments, which are arrays, and the others
    "areas": ([boxes(N)], {}), "intersections": ([boxes(N), boxes(G)], {}), "pairwise_iou": ([boxes(N), boxes(G)], {}),
    "clip": ([boxes(N), SIZE], {}), "flip": ([boxes(N), np.array(120, np.float32)], {}),
    "encode": ([boxes(N), boxes(N)], dict(stds=STDS)),
    "decode": ([boxes(N), normal(N, 4)], dict(stds=STDS, size=SIZE)),
    "nms": ([boxes(N), SCORES], dict(iou_threshold=.5, max_kept=9, groups=RNG.integers(0, 2, N, dtype=np.int32))),
    "multiclass_nms": ([boxes(N), ALL_SCORES], dict(iou_threshold=.5, min_score=.1, max_kept=9)),
    "soft_nms": ([boxes(N), ALL_SCORES], dict(iou_threshold=.5, min_score=.1, max_kept=9)),
    "assign_anchors": ([boxes(N), np.ones(N, bool), boxes(G), np.arange(G) < 4], {}),
    "assign_proposals": ([boxes(N), np.arange(N) < 20, boxes(G), np.arange(G) < 4], dict(threshold=.3)),
    "sample": ([ASSIGNED], dict(count=8, max_positive=3, rule="stride")),
    "roi_align": ([normal(20, 30, 4), boxes(N)], dict(stride=4, where=np.arange(N) % 2 == 0)),
    "deform_conv": ([normal(8, 9, 4), normal(8, 9, 18), normal(3, 3, 4, 5)], {}),
}
WITHOUT = {"Detections", "Sample", "grid_anchors", "level_anchors"}


def to_jax(x):
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def test_every_operator_is_tried():
    assert ARRAYS.keys() | WITHOUT == set(ops.__all__)


@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_arrays_give_what_jax_arrays_give(name):
    operator, (arrays, others) = getattr(ops, name), ARRAYS[name]
    want = operator(*map(to_jax, arrays), **{key: to_jax(value) for key, value in others.items()})
    plain = operator(*arrays, **others)
    inside = jax.jit(lambda: operator(*arrays, **others))()  # numpy arrays that a program closes over
    across = jax.jit(lambda *arrays: operator(*arrays, **others))(*arrays)
    for found in (plain, inside, across):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want)


def test_float64_is_taken_as_float32():
    assert ops.areas(boxes(N).astype(np.float64)).dtype == jnp.float32
