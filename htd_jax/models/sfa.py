"""SFA, semantic feature aggregation: the image-level context vector and its multi-label classifier."""
import jax
import jax.numpy as jnp
from flax import nnx

from htd_jax.models.layers import KAIMING_FAN_OUT, conv, linear, normal


class SFA(nnx.Module):
    """Four 3x3 convolutions on the coarsest level P6, average pooling, and a linear layer on the pooled vector."""

    def __init__(self, channels, classes, *, dtype=None, rngs):
        make = dict(dtype=dtype, rngs=rngs)
        self.convs = nnx.List([conv(channels, channels, 3, init=KAIMING_FAN_OUT, **make) for _ in range(4)])
        self.fc = linear(channels, classes + 1, init=normal(0.01), **make)

    def __call__(self, p6, padded):
        """Context `[B, C]` and float32 logits `[B, classes + 1]` from P6 `[B, h, w, C]`.

        `padded [B, 2]`: the (h, w) in pixels over which the average runs; the original's includes its own padding.
        """
        for layer in self.convs:
            p6 = jax.nn.relu(layer(p6))
        inside = _inside(p6.shape[1:3], padded, stride=64)
        total = jnp.einsum("bhwc,bhw->bc", p6.astype(jnp.float32), inside)
        context = (total / inside.sum(axis=(1, 2))[:, None]).astype(p6.dtype)
        return context, self.fc(context).astype(jnp.float32)


def _inside(shape, padded, stride):
    """1 for the cells `[B, h, w]` that the first `padded [B, 2]` pixels give rise to, else 0."""
    cells = -(-padded // stride)
    rows = jnp.arange(shape[0]) < cells[:, :1]
    columns = jnp.arange(shape[1]) < cells[:, 1:]
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
