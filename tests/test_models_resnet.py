"""Layers that are recomputed, and either place of a block's stride, against plain forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from htd_jax.models.resnet import Block, ResNet, recomputed
from htd_jax.weights import files, loading


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


def numpy_conv(x, kernel, stride):
    """[H, W, I] by [kh, kw, I, O], zeros around, in float64."""
    pad = kernel.shape[0] // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((pad, pad), (pad, pad), (0, 0))), kernel.shape[:2],
                                                       (0, 1))[::stride, ::stride]
    return np.einsum("yxiuv,uvio->yxo", windows, kernel, optimize=True)


def numpy_resnet50(tensors, image, stride_in_1x1):
    """C5 of a normalised image [H, W, 3], from torchvision's names and layouts."""
    def conv_bn(x, conv, bn, stride=1):
        x = numpy_conv(x, tensors[f"{conv}.weight"].astype(np.float64).transpose(2, 3, 1, 0), stride)
        scale, bias, mean, var = (tensors[f"{bn}.{name}"].astype(np.float64)
                                  for name in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(conv_bn(image, "conv1", "bn1", 2), 0)
    x = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))[::2, ::2].max(
        (-1, -2))
    for layer, count in enumerate((3, 4, 6, 3), start=1):
        for k in range(count):
            name, stride = f"layer{layer}.{k}", 2 if layer > 1 and k == 0 else 1
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            y = np.maximum(conv_bn(x, f"{name}.conv1", f"{name}.bn1", first), 0)
            y = np.maximum(conv_bn(y, f"{name}.conv2", f"{name}.bn2", second), 0)
            y = conv_bn(y, f"{name}.conv3", f"{name}.bn3")
            x = np.maximum(y + (conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if k == 0 else x), 0)
    return x


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_c5_of_real_weights_is_that_of_numpy(shared, stride_in_1x1):
    """In either place of the stride; with more padding than `padded` too."""
    path = shared / "weights/resnet50_caffe.safetensors"
    model = nnx.eval_shape(lambda: ResNet(50, stride_in_1x1=stride_in_1x1, rngs=nnx.Rngs(0)))
    tree = loading.load_into({"backbone": loading.tree_of(model)}, loading.load_tensors(path))["backbone"]
    loading.put(model, tree)
    image = np.random.default_rng(0).normal(size=(64, 96, 3)).astype(np.float32)
    expected = numpy_resnet50(files.read(path), image, stride_in_1x1)
    graphdef, state = nnx.split(model)
    c5 = jax.jit(lambda state, x, padded: nnx.merge(graphdef, state)(x, padded)[3])
    padded = jnp.asarray(np.pad(image, ((0, 32), (0, 32), (0, 0)))[None])
    for x in (jnp.asarray(image[None]), padded):
        actual = c5(state, x, jnp.array([[64, 96]]))[0, :2, :3]
        np.testing.assert_allclose(actual, expected, atol=2e-5 * np.sqrt((expected**2).mean()), rtol=0)
