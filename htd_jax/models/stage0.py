"""Stage 0, the common head: classes and boxes from crops that carry the image's context."""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from htd_jax.models.layers import crop_linear, linear, normal
from htd_jax.ops.crop_products import BINS

STDS = (0.1, 0.1, 0.2, 0.2)


class Stage0(nnx.Module):
    """Two fully connected layers of `hidden` on crop + g, then `classes + 1` logits and 4 class-agnostic deltas."""

    def __init__(self, channels: int, hidden: int, classes: int, *, dtype: DTypeLike | None = None,
                 rngs: nnx.Rngs) -> None:
        make = dict(dtype=dtype, rngs=rngs)
        self.fcs = nnx.List([linear(BINS * BINS * channels, hidden, **make), linear(hidden, hidden, **make)])
        self.fc_cls = linear(hidden, classes + 1, init=normal(0.01), **make)
        self.fc_reg = linear(hidden, 4, init=normal(0.001), **make)

    def __call__(self, crops: Float[Array, "B N 7 7 C"],
                 context: Float[Array, "B C"]) -> tuple[Float[Array, "B N K1"], Float[Array, "B N 4"]]:
        """Float32 logits and deltas."""
        x = crops + context[:, None, None, None, :]
        first, second = self.fcs
        x = jax.nn.relu(second(jax.nn.relu(crop_linear(first, x))))
        return self.fc_cls(x).astype(jnp.float32), self.fc_reg(x).astype(jnp.float32)
