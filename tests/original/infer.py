"""`infer_*.npz`: one image through the detector, part by part."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from htd_jax.models import detect, stage0
from htd_jax.models.htd import matmul_precision
from htd_jax.models.pgraph import interact, prototypes
from htd_jax.models.proposals import batch_proposals
from htd_jax.models.rpn import shapes_of
from htd_jax.ops.boxes import decode
from htd_jax.ops.pyramid_crops import crop_all_levels, crop_own_level, roi_levels
from original import reference
from original.figures import Archive, Figure, in_order, match, same_rows

BOUND = 1e-4  # max error / rms
TIE = {"hard": 1e-5, "soft": 4e-4}  # scores; the original's rounded IoU moves soft-NMS's by as much


def figures(name, ba_rois=1000, form="auto"):
    """All figures of `infer_*.npz` for the configuration `name`; `ba_rois`: how many RoIs to follow through BA.

    `form`: of RoIAlign.
    """
    archive = Archive(reference.find(f"infer_{name.removeprefix('htd_')}.npz"))
    maps, proposals, rois, found = compute(name, archive, ba_rois, form)
    rows = [Figure(key, archive.error(key, array), BOUND) for key, array in (maps | rois).items()]
    rows.append(Figure("proposals within .01 pixel", same_rows(proposals[0], archive["proposals"][:, :4]), 0.99, True))
    rows.append(Figure("proposal scores", float(np.abs(proposals[1] - archive["proposals"][:, 4]).max()), BOUND))
    golden = archive["det_bboxes"][:, :4], archive["det_bboxes"][:, 4], archive["det_labels"]
    ours = [found[key][0] for key in ("boxes", "scores", "labels")]
    share, difference = match(ours, golden)
    tie = TIE[reference.config(name).test.nms]
    return rows + [Figure("detections matched", share, 0.98, True), Figure("detections' scores", difference, tie),
                   Figure("detections in order", in_order(ours, golden, tie), 1, True)]


def compute(name, archive, ba_rois, form):
    """Ours, in PyTorch's layouts: maps, own proposals (boxes, scores), what the golden ones lead to, detections."""
    config, graphdef = reference.config(name, form), nnx.graphdef(reference.abstract(name, form))
    sizes, padded = [tuple(archive["image_hw"])], tuple(archive["pad_hw"])
    batch = dict(image=reference.images(sizes, padded, int(archive["image_seed"])), size=np.int32(sizes),
                 padded=np.int32([padded]), scale=np.ones((1, 2), np.float32))
    golden = archive["proposals"][None]

    @jax.jit
    def run(state, batch, golden):
        model = nnx.merge(graphdef, state)
        with matmul_precision(config.dtype):
            maps, pyramid, context, proposals = front(model, batch, config)
            given = golden[..., :4], golden[..., 4], jnp.ones(golden.shape[:2], bool)
            rois = heads(model, pyramid, context, given[0][0], batch["size"][0], ba_rois)
        with mock.patch.object(detect, "batch_proposals", lambda *_: given):
            found = detect.detect(model, batch, config)
        wanted = {key: value for key, value in rois.items() if key in archive}
        return maps, proposals, wanted, found

    maps, proposals, rois, found = jax.device_get(run(reference.state(name), batch, golden))
    if "htd.graph0_in" in archive:
        rois |= split_by_level(rois, archive["refined_rois"][:, 1:])
    return maps, [part[0] for part in proposals[:2]], rois, found


def front(model, batch, config):
    """Everything up to the proposals."""
    stages = model.backbone(batch["image"])
    pyramid = model.neck(stages)
    logits, deltas = model.rpn(pyramid)
    context, scene = model.sfa(pyramid[-1], batch["padded"])
    maps = {f"C{k + 2}": channels_first(x) for k, x in enumerate(stages)}
    for k, level in enumerate(pyramid):
        shape = 1, *level.shape[1:3], -1
        maps[f"P{k + 2}"] = channels_first(level)
        maps[f"rpn_cls{k + 2}"] = channels_first(logits[k].reshape(shape))
        maps[f"rpn_reg{k + 2}"] = deltas[k].reshape(1, -1, *shape[1:3])
    maps |= {"mc_pred": scene, "global_feat": context[:, :, None, None]}
    proposals = batch_proposals(logits, deltas, shapes_of(pyramid), batch["size"], batch["padded"], config.test)
    return maps, [level[0] for level in pyramid[:4]], context, proposals


def heads(model, pyramid, context, rois, size, ba_rois):
    """Both stages, inside and out, from `rois [N, 4]`."""
    crops = crop_own_level(pyramid, rois, model.roi_align)
    logits0, deltas = model.stage0(crops[None], context)
    refined = decode(rois, deltas[0], stage0.STDS, size)
    out = {"s0.roi_feats": channels_first(crops), "s0.cls_score": logits0[0], "s0.bbox_pred": deltas[0],
           "s0.roi_feats_fused": channels_first(crops + context[:, None, None]),
           "refined_rois": jnp.pad(refined, ((0, 0), (1, 0)))}
    crops = crop_own_level(pyramid, refined, model.roi_align)
    logits1 = model.pgraph(crops[None], context, refined[None], jnp.ones((1, len(rois)), bool), model.stage0.fc_cls)
    out |= {"s1.roi_feats": channels_first(crops), "s1.cls_score": logits1[0],
            "mean_cls_score": (logits0 + logits1)[0] / 2}
    return out | graph(model, crops, context, refined) | regression(model, pyramid, context, refined, ba_rois)


def graph(model, crops, context, rois):
    """The inside of PGraph; its graphs' rows are still in the order of the RoIs (`graph_in`, `graph_out`)."""
    x, with_context = (part[0] for part in model.pgraph.embed(crops[None], context))
    logits, levels = model.stage0.fc_cls(x), roi_levels(rois)
    valid = jnp.ones(len(rois), bool)
    inputs = interact(x, jax.nn.softmax(logits), rois, levels, valid, prototypes(model.stage0.fc_cls))
    outputs = model.pgraph.graph_layers(inputs, levels)
    return {"htd.fcs.0": with_context, "htd.fcs.1": x, "htd.fc_cls0_logits": logits,
            "htd.cls_feat": with_context + jax.nn.relu(outputs), "htd.graph0_in": inputs, "htd.graph0_out": outputs}


def split_by_level(rois, refined):
    """Rows of each level's graph: {htd.graph{k}_in and _out: [n_k, hidden]}."""
    levels = np.asarray(roi_levels(jnp.asarray(refined)))
    return {f"htd.graph{k}_{side}": rois[f"htd.graph0_{side}"][levels == k]
            for k in np.unique(levels) for side in ("in", "out")}


def regression(model, pyramid, context, rois, count):
    """BA, inside and out, of `rois [n, 4]`; its convolutions, which are expensive, of the first `count`."""
    own = crop_own_level(pyramid, rois, model.roi_align)
    crops = crop_all_levels(pyramid, rois, own, model.roi_align)
    merged = model.ba.aggregate(crops)
    inputs = merged + own + context[:, None, None]
    x = inputs[:count]
    for layer in model.ba.convs:
        x = layer(x)
    deltas = model.ba(crops[:, :count], own[:count], jnp.repeat(context, count, axis=0), model.ba.prepare())
    return {"s1.ba_att_logits": model.ba.attention_logits(crops), "s1.ba_feats": channels_first(merged),
            "htd.reg_in": channels_first(inputs), "htd.reg_convs": channels_first(x), "s1.bbox_pred": deltas}


def channels_first(x):
    return jnp.moveaxis(x, -1, 1)
