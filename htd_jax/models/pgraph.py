"""PGraph, the progressive graph: stage 1's classification branch.

The RoIs of one image that lie on one level of the pyramid form a graph. All graphs of an image are worked on as one
N x N block in which only pairs of the same graph are present.
"""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from htd_jax.models.layers import crop_linear, linear, normal
from htd_jax.ops.boxes import intersections
from htd_jax.ops.crop_products import BINS
from htd_jax.ops.pyramid_crops import roi_levels


class PGraph(nnx.Module):
    """Local aggregation over overlapping RoIs, semantic interaction with the others, one graph layer a level."""

    def __init__(self, channels: int, hidden: int, classes: int, *, dtype: DTypeLike | None = None,
                 rngs: nnx.Rngs) -> None:
        make = dict(dtype=dtype, rngs=rngs)
        self.fcs = nnx.List([linear(BINS * BINS * channels, hidden, **make), linear(hidden, hidden, **make)])
        self.graph = nnx.List([linear(hidden, hidden, **make) for _ in range(4)])
        self.fc_cls = linear(hidden, classes + 1, init=normal(0.01), **make)

    def __call__(self, crops: Float[Array, "B N 7 7 C"], context: Float[Array, "B C"], rois: Float[Array, "B N 4"],
                 valid: Bool[Array, "B N"], stage0_fc_cls: nnx.Linear) -> Float[Array, "B N K1"]:
        """Float32 logits from crops without g.

        `stage0_fc_cls` is stage 0's classifier: its weights are the prototypes (no gradient), its probabilities of x
        choose among them (with gradient).
        """
        x, x_with_context = self.embed(crops, context)
        levels = jax.vmap(roi_levels)(rois)
        p = jax.nn.softmax(stage0_fc_cls(x).astype(jnp.float32), axis=-1)
        graph_in = jax.vmap(interact, in_axes=(0, 0, 0, 0, 0, None))(
            x, p, rois, levels, valid, prototypes(stage0_fc_cls))
        z = jax.nn.relu(self.graph_layers(graph_in, levels))
        return self.fc_cls(x_with_context + z).astype(jnp.float32)

    def embed(self, crops: Float[Array, "B N 7 7 C"],
              context: Float[Array, "B C"]) -> tuple[Float[Array, "B N F"], Float[Array, "B N F"]]:
        """The two layers on the crops alone and on crops + g.

        The first layer is linear, W(x + g) = W x + W g, so the crops pass it once.
        """
        first, second = self.fcs
        hidden = crop_linear(first, crops)
        kernel = first.kernel[...].astype(context.dtype)
        shift = jnp.einsum("bc,tco->bo", context, kernel.reshape(BINS * BINS, -1, kernel.shape[-1]))
        return tuple(jax.nn.relu(second(jax.nn.relu(h))) for h in (hidden, hidden + shift[:, None, :]))

    def graph_layers(self, x: Float[Array, "*B N F"], levels: Int[Array, "*B N"]) -> Float[Array, "*B N F"]:
        """Each RoI through its own level's layer."""
        outputs = [jnp.where((levels == k)[..., None], layer(x), 0) for k, layer in enumerate(self.graph)]
        return sum(outputs)


def prototypes(fc_cls: nnx.Linear) -> Float[Array, "K1 _"]:
    """Class prototypes: stage 0's classifier weights beside its biases, without gradient."""
    kernel, bias = jax.lax.stop_gradient((fc_cls.kernel[...], fc_cls.bias[...]))
    return jnp.concatenate([kernel.T, bias[:, None]], axis=1)


def interact(x: Float[Array, "N F"], p: Float[Array, "N K1"], rois: Float[Array, "N 4"], levels: Int[Array, "N"],
             valid: Bool[Array, "N"], prototypes: Float[Array, "K1 _"]) -> Float[Array, "N F"]:
    """What the graph layers see, for one image: B (A x). `p`: softmax of stage 0's logits of x.

    A = D^-1/2 M D^-1/2 over overlapping pairs M; B = softmax of (1 - M) * (s s^T), s = p prototypes: overlapping
    pairs enter the softmax as 0, while pairs of different graphs and unused slots are absent from it.
    """
    same = (levels[:, None] == levels[None, :]) & valid[:, None] & valid[None, :]
    diagonal = jnp.eye(len(rois), dtype=bool)
    overlap = same & (intersections(rois, rois) > 0) | diagonal
    mask = overlap.astype(jnp.float32)
    scale = jax.lax.rsqrt(mask.sum(axis=1))
    a = (scale[:, None] * mask * scale[None, :]).astype(x.dtype)
    s = p @ prototypes
    affinity = (1 - mask) * (s @ s.T)
    b = jax.nn.softmax(jnp.where(same | diagonal, affinity, -jnp.inf), axis=-1).astype(x.dtype)
    return b @ (a @ x)
