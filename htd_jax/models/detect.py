"""From a batch to detections, with test-time augmentation where more than one view is given."""
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped
from ml_collections import ConfigDict

from htd_jax.models import ba, stage0
from htd_jax.models.htd import HTD, matmul_precision, normalise
from htd_jax.models.proposals import Proposals, batch_proposals, merge
from htd_jax.models.rpn import shapes_of
from htd_jax.ops.boxes import decode, flip
from htd_jax.ops.nms import multiclass_nms
from htd_jax.ops.pyramid_crops import crop_all_levels, crop_own_level, of_own_level, roi_levels
from htd_jax.ops.soft_nms import soft_nms

REGRESSED_AT_ONCE = 32


class View(NamedTuple):
    """One image of a batch as one view shows it: P2..P5, context, and where its pixels lie."""

    pyramid: list[Float[Array, "*B _ _ C"]]
    context: Float[Array, "*B C"]
    size: Int[Array, "*B 2"]
    scale: Float[Array, "*B 2"]
    flipped: Bool[Array, "*B"]

    def to_original(self, boxes: Float[Array, "N 4"]) -> Float[Array, "N 4"]:
        """Boxes of the view in the original's pixels."""
        unflipped = jnp.where(self.flipped, flip(boxes, self.size[1].astype(boxes.dtype)), boxes)
        return unflipped / jnp.tile(self.scale, 2)[None]

    def from_original(self, boxes: Float[Array, "N 4"]) -> Float[Array, "N 4"]:
        """Boxes of the original in this view's pixels, not clipped."""
        boxes = boxes * jnp.tile(self.scale, 2)[None]
        return jnp.where(self.flipped, flip(boxes, self.size[1].astype(boxes.dtype)), boxes)


Batch = dict[str, Shaped[Array, "B *_"]]  # image, size, padded, scale


def detect(model: HTD, batch: Batch | Sequence[Batch], config: ConfigDict) -> dict[str, Shaped[Array, "B D *_"]]:
    """Detections of every image: boxes in the original's pixels, scores, labels and valid, by falling score.

    For test-time augmentation (`config.test.tta`): a sequence of batches, one a scale, which are also flipped where
    `config.test.tta_flip`.
    """
    batches = (batch,) if isinstance(batch, dict) else batch
    with matmul_precision(config.dtype):
        proposed = [view_proposals(model, batch, flipped, config) for batch in batches for flipped in _flips(config)]
        views = [of_view.view for of_view in proposed]
        proposals, valid = _rois(proposed, config.test.proposals)
        return jax.vmap(lambda views, proposals, valid: _detect_one(model, views, proposals, valid, config))(
            views, proposals, valid)


def _flips(config):
    return (False, True) if config.test.tta and config.test.tta_flip else (False,)


class ViewProposals(NamedTuple):
    """A `View` of every image with its own proposals, in pixels of the view."""

    view: View
    boxes: Float[Array, "B N 4"]
    scores: Float[Array, "B N"]
    valid: Bool[Array, "B N"]


def view_proposals(model: HTD, batch: Batch, flipped: bool, config: ConfigDict) -> ViewProposals:
    """`ViewProposals` of a batch, mirrored left to right where `flipped`."""
    images = normalise(batch["image"], batch["size"])
    if flipped:
        images = jax.vmap(_mirror)(images, batch["size"][:, 1])
    pyramid = model.features(images, batch["padded"])
    logits, deltas = model.rpn(pyramid, batch["padded"])
    proposals = batch_proposals(logits, deltas, shapes_of(pyramid), batch["size"], batch["padded"], config.test)
    context, _ = model.sfa(pyramid[-1], batch["padded"])
    view = View(pyramid[:-1], context, batch["size"], batch["scale"], jnp.full(len(images), flipped))
    return ViewProposals(view, *proposals)


def _mirror(image, width):
    """The image's first `width` columns from right to left; the padding stays where it is."""
    columns = jnp.arange(image.shape[1])
    return image[:, jnp.where(columns < width, width - 1 - columns, columns)]


def _rois(proposed, count):
    """The proposals of all views as one list: the only view's own, or all views' merged, in the original's pixels."""
    if len(proposed) == 1:
        return proposed[0].boxes, proposed[0].valid
    return merge([Proposals(jax.vmap(View.to_original)(p.view, p.boxes), p.scores, p.valid) for p in proposed], count)


def _detect_one(model, views, proposals, valid, config):
    """Detections of one image from its views."""
    single = len(views) == 1
    rois = [proposals if single else view.from_original(proposals) for view in views]
    classified = [classify(model, view, boxes, valid) for view, boxes in zip(views, rois)]
    scores = sum(jax.nn.softmax(logits) for logits, _, _ in classified) / len(views)
    scores = jnp.where(valid[:, None], scores[:, :-1], 0)
    needed = (scores > config.test.score).any(axis=1)
    boxes = sum(view.to_original(regress(model, view, refined, own, needed))
                for view, (_, refined, own) in zip(views, classified)) / len(views)
    select = {"hard": multiclass_nms, "soft": soft_nms}[config.test.nms]
    found = select(boxes, scores, config.test.nms_iou, config.test.score, config.test.max_detections)
    return found._asdict()


def classify(model: HTD, view: View, rois: Float[Array, "N 4"], valid: Bool[Array, "N"]
             ) -> tuple[Float[Array, "N K1"], Float[Array, "N 4"], Float[Array, "N 7 7 C"]]:
    """Averaged logits of both stages, stage 1's RoIs and their own levels' crops."""
    context = view.context[None]
    logits0, deltas = model.stage0(crop_own_level(view.pyramid, rois, model.roi_align)[None], context)
    refined = decode(rois, deltas[0], stage0.STDS, view.size)
    own = crop_own_level(view.pyramid, refined, model.roi_align)
    logits1 = model.pgraph(own[None], context, refined[None], valid[None], model.stage0.fc_cls)
    return (logits0[0] + logits1[0]) / 2, refined, own


def regress(model: HTD, view: View, rois: Float[Array, "N 4"], own: Float[Array, "N 7 7 C"],
            needed: Bool[Array, "N"]) -> Float[Array, "N 4"]:
    """Final boxes, in the view's pixels, of `rois` with crops `own`; right where `needed`.

    BA and its crops of all levels are the most expensive part of a test image, and only RoIs with a score that can be
    output need them. A loop takes these in chunks, as many as there are: shapes stay static, and a hard image gets all.
    """
    count = len(rois)
    chunk = min(REGRESSED_AT_ONCE, count)
    order = jnp.pad(jnp.argsort(~needed, stable=True), (0, -count % chunk))
    context = jnp.repeat(view.context[None], chunk, axis=0)
    prepared = model.ba.prepare()  # outside the loop: once for all of its steps

    def advance(step, deltas):
        index = jax.lax.dynamic_slice(order, (step * chunk,), (chunk,))
        crops = crop_all_levels(view.pyramid, rois[index], own[index], model.roi_align)
        of_own = of_own_level(crops, roi_levels(rois[index]))
        return deltas.at[index].set(model.ba(crops, of_own, context, prepared))

    chunks = (needed.sum() + chunk - 1) // chunk
    deltas = jax.lax.fori_loop(0, chunks, advance, jnp.zeros((count, 4), jnp.float32))
    return decode(rois, deltas, ba.STDS, view.size)
