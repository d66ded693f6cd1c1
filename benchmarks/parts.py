"""Where the time of a detection goes: each part alone, on what the part before it gives, all proposals regressed."""
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs, models, timing
from benchmarks.table import Row
from htd_jax.models.detect import REGRESSED_AT_ONCE
from htd_jax.models.htd import matmul_precision, normalise
from htd_jax.models.proposals import batch_proposals
from htd_jax.models.rpn import shapes_of
from htd_jax.ops.nms import multiclass_nms
from htd_jax.ops.pyramid_crops import crop_all_levels, crop_own_level


def rows(name, config, image=(800, 1344), repeats=5):
    """A `Row` for each part of `detect` on one image (h, w), and of them the sum."""
    params, frozen = models.parameters(name, config)
    batch = inputs.batch(1, image, np.random.default_rng(0))
    found = []

    def part(what, function, *arguments):
        def run(params, frozen, *arguments):
            with matmul_precision(config.dtype):
                return function(models.merged(config, params, frozen), *arguments)

        ours = timing.compiled(run, params, frozen, *arguments)
        times = timing.times({"ours": ours.call}, repeats)["ours"]
        found.append(Row(what, times, 0, ours.seconds, ours.memory, ours.flops))
        return ours.call()

    run_parts(part, batch, config)
    total = timing.Times(*(sum(row.times[k] for row in found) for k in range(3)))
    return [*found, Row("sum of the parts", total, 1, flops=sum(row.flops for row in found))]


def run_parts(part, batch, config):
    """Calls part(name, function of the model and arrays, arrays) for each part of a detection in turn."""
    images = normalise(jnp.asarray(batch["image"]), batch["size"])
    maps = part("backbone", lambda m, x: m.backbone(x), images)
    pyramid = part("FPN", lambda m, x: m.neck(x), maps)
    logits, deltas = part("RPN head", lambda m, x: m.rpn(x), pyramid)
    boxes, _, valid = part("proposals (top-k, NMS)", lambda m, o, d: batch_proposals(
        o, d, shapes_of(pyramid), batch["size"], batch["padded"], config.test), logits, deltas)
    context, _ = part("SFA", lambda m, x: m.sfa(x, batch["padded"]), pyramid[-1])
    levels, rois = [x[0] for x in pyramid[:4]], boxes[0]
    own = part("RoIAlign, stage 0 (own level)", lambda m, x, r: crop_own_level(x, r), levels, rois)
    part("stage 0's layers", lambda m, x, c: m.stage0(x[None], c), own, context)
    own = part("RoIAlign, stage 1 (own level)", lambda m, x, r: crop_own_level(x, r), levels, rois)
    class_logits = part("PGraph", lambda m, x, c, r, v: m.pgraph(x[None], c, r[None], v, m.stage0.fc_cls),
                        own, context, rois, valid)
    crops = part(f"RoIAlign, stage 1 (other levels), {len(rois)} RoIs", lambda m, x, r, o: crop_all_levels(x, r, o),
                 levels, rois, own)
    part(f"BA, {len(rois)} RoIs", lambda m, x, o, c: _in_chunks(m, x, o, c), crops, own, context)
    part("NMS of classes", lambda m, b, s: multiclass_nms(b, s, config.test.nms_iou, 0.0, config.test.max_detections),
         rois, jax.nn.softmax(class_logits[0])[:, :-1])


def _in_chunks(model, crops, own, context):
    """BA on so many RoIs at a time as `detect.regress` does it."""
    prepared = model.ba.prepare()
    regress = lambda inputs: model.ba(inputs[0][:, None], inputs[1][None], context, prepared)[0]
    return jax.lax.map(regress, (jnp.moveaxis(crops, 1, 0), own), batch_size=REGRESSED_AT_ONCE)
