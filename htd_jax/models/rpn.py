"""Region proposal network: its head, and proposals from what the head says."""
import jax
import jax.numpy as jnp
from flax import nnx

from htd_jax.models.layers import clear_padding, conv, normal
from htd_jax.ops.anchors import RATIOS, STRIDES, grid_anchors
from htd_jax.ops.boxes import decode
from htd_jax.ops.cells import surrounding_rows
from htd_jax.ops.nms import nms

STDS = (1.0, 1.0, 1.0, 1.0)
NMS_IOU = 0.7


class RPNHead(nnx.Module):
    """3x3 convolution and ReLU, then 3 objectness logits and 12 deltas a cell, shared by all levels."""

    def __init__(self, channels, *, dtype=None, rngs):
        make = dict(init=normal(0.01), dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, 3, **make)
        self.cls = conv(channels, len(RATIOS), 1, **make)
        self.reg = conv(channels, 4 * len(RATIOS), 1, **make)

    def __call__(self, pyramid, padded=None):
        """Per level float32 logits `[B, anchors]` and deltas `[B, anchors, 4]`, anchors in the order y, x, ratio.

        `padded`: as for the backbone.
        """
        hidden = [jax.nn.relu(self.conv(clear_padding(features, padded, stride))) for features, stride in zip(pyramid, STRIDES)]
        return tuple(map(list, zip(*map(self.outputs, hidden))))

    def outputs(self, hidden):
        """Logits `[B, A]` and deltas `[B, A, 4]` of `hidden [B, H, W, C]`: two 1x1 convolutions as one, which reads it once."""
        heads = self.cls, self.reg
        kernel, bias = (jnp.concatenate([getattr(head, name)[...] for head in heads], axis=-1).astype(hidden.dtype)
                        for name in ("kernel", "bias"))
        both = jax.lax.conv_general_dilated(hidden, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        logits, deltas = jnp.split((both + bias).astype(jnp.float32), [len(RATIOS)], axis=-1)
        return logits.reshape(len(hidden), -1), deltas.reshape(len(hidden), -1, 4)

    def at(self, pyramid, anchors):
        """Float32 logits `[B, N]` and deltas `[B, N, 4]` of single anchors: indices `[B, N]` among those of all levels.

        Of anchors inside the image, which is as much as three cells: what a border does is not reproduced. For the
        losses, whose gradient is 0 at all other anchors: a backward pass over whole maps would add up zeros.
        """
        by_rows = lambda pyramid, anchors: surrounding_rows(pyramid, anchors // len(RATIOS))
        seen = jax.lax.platform_dependent(pyramid, anchors, cpu=jax.vmap(surroundings), default=by_rows)
        kernel, bias = self.conv.kernel[...].astype(seen.dtype), self.conv.bias[...].astype(seen.dtype)
        hidden = jax.nn.relu(seen @ kernel.reshape(-1, kernel.shape[-1]) + bias)[:, None]  # an image of one row
        shape, ratio = (*anchors.shape, len(RATIOS), -1), (anchors % len(RATIOS))[..., None, None]
        logits, deltas = (jnp.take_along_axis(part.reshape(shape), ratio, axis=2)[:, :, 0] for part in self.outputs(hidden))
        return logits[..., 0], deltas


def surroundings(pyramid, anchors):
    """For a CPU: the 3x3 cells `[N, 9 * C]` about each of the `anchors [N]` of one image, P2..P6 `[H, W, C]`."""
    seen, start = 0, 0
    for features in pyramid:
        height, width, channels = features.shape
        framed = jnp.pad(features, ((0, max(0, 3 - height)), (0, max(0, 3 - width)), (0, 0)))
        cell = (anchors - start) // len(RATIOS)
        window = lambda y, x: jax.lax.dynamic_slice(framed, (y - 1, x - 1, 0), (3, 3, channels))
        here = (cell >= 0) & (cell < height * width)
        seen += jnp.where(here[:, None], jax.vmap(window)(cell // width, cell % width).reshape(len(anchors), -1), 0)
        start += len(RATIOS) * height * width
    return seen


def propose(logits, deltas, shapes, size, nms_pre, count):
    """Proposals of one image: boxes `[count, 4]` clipped to `size` (h, w), scores `[count]`, valid `[count]`.

    `logits`, `deltas`: lists over the levels, `[anchors]` and `[anchors, 4]`; `shapes` (height, width) of each. The
    `nms_pre` best of each level pass NMS at .7 within the level; the best `count` of all remain, by falling score.
    Logits of minus infinity mark anchors that do not take part. No gradient, no minimum size, nothing else masked.
    """
    slots = min(nms_pre, max(len(level) for level in logits))
    levels = [_best_of_level(*level, size, nms_pre, slots) for level in zip(logits, deltas, grid_anchors(shapes))]
    boxes, scores = (jnp.stack(part) for part in zip(*levels))
    kept, valid = jax.vmap(lambda b, s: nms(b, s, NMS_IOU, slots))(boxes, scores)
    boxes = jnp.take_along_axis(boxes, kept[..., None], axis=1).reshape(-1, 4)
    scores = jnp.where(valid, jnp.take_along_axis(scores, kept, axis=1), -jnp.inf).reshape(-1)
    boxes, scores = (jnp.pad(boxes, ((0, max(0, count - len(scores))), (0, 0))),
                     jnp.pad(scores, (0, max(0, count - len(scores))), constant_values=-jnp.inf))
    scores, order = jax.lax.top_k(scores, count)
    valid = scores > -jnp.inf
    return jnp.where(valid[:, None], boxes[order], 0), jnp.where(valid, scores, 0), valid


def _best_of_level(logits, deltas, anchors, size, nms_pre, slots):
    """Boxes `[slots, 4]` and scores `[slots]` of the `nms_pre` best anchors of a level; -inf in unused slots."""
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    scores = jnp.where(logits > -jnp.inf, jax.nn.sigmoid(logits), -jnp.inf)
    scores, index = jax.lax.top_k(scores, min(nms_pre, len(logits)))
    boxes = decode(jnp.asarray(anchors)[index], deltas[index], STDS, size)
    pad = slots - len(scores)
    return jnp.pad(boxes, ((0, pad), (0, 0))), jnp.pad(scores, (0, pad), constant_values=-jnp.inf)
