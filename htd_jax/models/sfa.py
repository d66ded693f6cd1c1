"""SFA, semantic feature aggregation: the image-level context vector and its multi-label classifier."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from htd_jax.models.layers import KAIMING_FAN_OUT, clear_padding, conv, linear, normal
from htd_jax.ops.anchors import STRIDES


class SFA(nnx.Module):
    """Four 3x3 convolutions on the coarsest level P6, average pooling, and a linear layer on the pooled vector."""

    def __init__(self, channels: int, classes: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> None:
        make = dict(dtype=dtype, rngs=rngs)
        self.convs = nnx.List([conv(channels, channels, 3, init=KAIMING_FAN_OUT, **make) for _ in range(4)])
        self.fc = linear(channels, classes + 1, init=normal(0.01), **make)

    def __call__(self, p6: Float[Array, "B H W C"],
                 padded: Int[Array, "B 2"]) -> tuple[Float[Array, "B C"], Float[Array, "B K1"]]:
        """Context, averaged over the original's padding too, and float32 logits."""
        clear = lambda x: clear_padding(x, padded, STRIDES[-1])
        for layer in self.convs:
            p6 = jax.nn.relu(layer(clear(p6)))
        cells = jnp.prod(-(-padded // STRIDES[-1]), axis=1, keepdims=True)
        context = (clear(p6).astype(jnp.float32).sum(axis=(1, 2)) / cells).astype(p6.dtype)
        return context, self.fc(context).astype(jnp.float32)
