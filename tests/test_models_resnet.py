"""A layer whose activations are recomputed is the layer: same map, same gradients."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from htd_jax.models.resnet import Block, recomputed


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("deformable, kind", [(True, "frozen_bn"), (False, "gn")])
def test_recomputed_layer_is_the_layer(count, deformable, kind):
    make = lambda inputs, stride: Block(inputs, 8, 8, stride, 4, bottleneck=True, groups=1, deformable=deformable,
                                        kind=kind, dtype=None, rngs=nnx.Rngs(0))
    blocks = nnx.List([make(16, 2)] + [make(32, 1) for _ in range(count - 1)])
    graphdef, state = nnx.split(blocks)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(abs(rng.normal(0, .3, leaf.shape)) if leaf.ndim == 1 else
                                                  rng.normal(0, .3, leaf.shape), jnp.float32), state)
    x = jnp.asarray(rng.normal(0, 1, (2, 12, 16, 16)), jnp.float32)
    padded = jnp.array([[48, 64], [48, 40]])

    def in_turn(blocks, x, padded):
        for block in blocks:
            x = block(x, padded)
        return x

    def loss(state, x, layer):
        y = layer(nnx.merge(graphdef, state), x, padded)
        return jnp.tanh(y).mean(), y

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    expected, actual = run(state, x, in_turn), run(state, x, recomputed)
    learns = [leaf for path, leaf in jax.tree.leaves_with_path(expected[1]) if "mean" not in str(path)]
    assert all(bool(jnp.any(leaf != 0)) for leaf in learns)
    for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5 * float(jnp.abs(e).max()))
