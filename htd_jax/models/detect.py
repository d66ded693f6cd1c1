"""From a batch to detections, with test-time augmentation where more than one view is given."""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from htd_jax.models import ba, stage0
from htd_jax.models.htd import matmul_precision, normalise
from htd_jax.models.proposals import batch_proposals
from htd_jax.models.rpn import shapes_of
from htd_jax.ops.boxes import decode, flip
from htd_jax.ops.nms import multiclass_nms, nms
from htd_jax.ops.pyramid import crop_all_levels, crop_own_level
from htd_jax.ops.soft_nms import soft_nms

REGRESSED_AT_ONCE = 32
MERGE_IOU = 0.7


class View(NamedTuple):
    """One image of the batch as one view shows it: pyramid P2..P5 `[h, w, C]`, context `[C]`, and where its pixels lie."""

    pyramid: list
    context: jax.Array
    size: jax.Array
    scale: jax.Array
    flipped: jax.Array

    def to_original(self, boxes):
        """Boxes of the view in the original's pixels."""
        unflipped = jnp.where(self.flipped, flip(boxes, self.size[1].astype(boxes.dtype)), boxes)
        return unflipped / jnp.tile(self.scale, 2)

    def from_original(self, boxes):
        """Boxes of the original in this view's pixels, not clipped."""
        boxes = boxes * jnp.tile(self.scale, 2)
        return jnp.where(self.flipped, flip(boxes, self.size[1].astype(boxes.dtype)), boxes)


def detect(model, batch, config):
    """Detections of every image: boxes `[B, 100, 4]` (original pixels), scores, labels (int32) and valid `[B, 100]`.

    `batch`: image `[B, H, W, 3]`, size, padded, scale `[B, 2]`; or a tuple of such batches, one a scale, for
    test-time augmentation (`config.test.tta`), which also flips each where `config.test.tta_flip`.
    """
    batches = batch if isinstance(batch, (tuple, list)) else (batch,)
    with matmul_precision(config.dtype):
        proposed = [view_proposals(model, batch, flipped, config) for batch in batches for flipped in _flips(config)]
        views = [of_view.view for of_view in proposed]
        proposals, valid = _merge_proposals(proposed, config.test.proposals)
        return jax.vmap(lambda views, proposals, valid: _detect_one(model, views, proposals, valid, config))(
            views, proposals, valid)


def _flips(config):
    return (False, True) if config.test.tta and config.test.tta_flip else (False,)


class ViewProposals(NamedTuple):
    """A `View` of every image with its own proposals, in pixels of the view: boxes `[B, N, 4]`, scores, valid `[B, N]`."""

    view: View
    boxes: jax.Array
    scores: jax.Array
    valid: jax.Array


def view_proposals(model, batch, flipped, config):
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


def _merge_proposals(proposed, count):
    """One list of proposals for all views: the only view's own, or all views' in original pixels after NMS at .7."""
    if len(proposed) == 1:
        return proposed[0].boxes, proposed[0].valid
    boxes = jnp.concatenate([jax.vmap(View.to_original)(p.view, p.boxes) for p in proposed], axis=1)
    scores = jnp.concatenate([jnp.where(p.valid, p.scores, -jnp.inf) for p in proposed], axis=1)
    kept, valid = jax.vmap(lambda b, s: nms(b, s, MERGE_IOU, count))(boxes, scores)
    return jnp.take_along_axis(boxes, kept[..., None], axis=1), valid


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
    return dict(zip(("boxes", "scores", "labels", "valid"), found))


def classify(model, view, rois, valid):
    """Averaged logits of both stages `[N, classes + 1]` of `rois [N, 4]`, stage 1's RoIs and their own levels' crops."""
    context = view.context[None]
    logits0, deltas = model.stage0(crop_own_level(view.pyramid, rois)[None], context)
    refined = decode(rois, deltas[0], stage0.STDS, view.size)
    own = crop_own_level(view.pyramid, refined)
    logits1 = model.pgraph(own[None], context, refined[None], valid[None], model.stage0.fc_cls)
    return (logits0[0] + logits1[0]) / 2, refined, own


def regress(model, view, rois, own, needed):
    """Final boxes `[N, 4]`, in the view's pixels, of `rois [N, 4]` with crops `own [N, 7, 7, C]`; right where `needed [N]`.

    BA and its crops of all levels are the most expensive part of a test image, and only RoIs with a score that can be
    output need them. A loop takes these in chunks, as many as there are: shapes stay static, and a hard image gets all.
    """
    count = len(rois)
    chunk = min(REGRESSED_AT_ONCE, count)
    order = jnp.pad(jnp.argsort(~needed, stable=True), (0, -count % chunk))
    context = jnp.broadcast_to(view.context, (chunk, len(view.context)))
    prepared = model.ba.prepare()  # outside the loop: once for all of its steps

    def advance(step, deltas):
        index = jax.lax.dynamic_slice(order, (step * chunk,), (chunk,))
        crops = crop_all_levels(view.pyramid, rois[index], own[index])
        return deltas.at[index].set(model.ba(crops, own[index], context, prepared))

    chunks = (needed.sum() + chunk - 1) // chunk
    deltas = jax.lax.fori_loop(0, chunks, advance, jnp.zeros((count, 4)))
    return decode(rois, deltas, ba.STDS, view.size)
