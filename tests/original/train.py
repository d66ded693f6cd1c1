"""`train_*.npz`: losses, gradients, samples and targets of one batch of two images, from the golden proposals."""
import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util

from htd_jax.models import functional, losses, rpn_loss
from htd_jax.models.htd import trainable
from htd_jax.models.loss_terms import smooth_l1
from htd_jax.models.targets import GroundTruth, anchor_targets
from htd_jax.ops.anchors import grid_anchors
from htd_jax.weights import names
from original import reference
from original.figures import Archive, Figure, relative, same_rows

LOSS, GRADIENT = 1e-5, 1e-3
ATTENTION = "roi_head.bbox_roi_extractor.1."  # its gradients are differences between levels that nearly cancel:
# Weights 1e-6 off (`reference.state` with draw 1, 2, 3) move the norms by 1.0e-3 to 2.1e-3 for R101-DCN.
ATTENTION_GRADIENT = 2e-3
ZERO_IN_THEORY = f"{ATTENTION}conv2.bias"  # a constant added to all logits of a softmax


class Run(NamedTuple):
    """What came out, as numpy; `gradients` by checkpoint name; see `observe` for `seen`."""

    archive: Archive
    batch: dict
    logs: dict
    gradients: dict
    seen: dict
    anchors: tuple


def figures(name):
    """The figures of `train_*.npz` for the configuration `name`."""
    mine = run(name)
    rows = [Figure(loss, error, LOSS) for loss, error in loss_errors(mine).items()]
    errors = gradient_errors(mine)
    norms, samples = zip(*(error for gradient, error in errors.items() if not gradient.startswith(ATTENTION)))
    attention, _ = zip(*(error for gradient, error in errors.items() if gradient.startswith(ATTENTION)))
    rows += [Figure(f"norm of {len(norms)} gradients", max(norms), GRADIENT),
             Figure(f"norm of {len(attention)} gradients of BA's attention", max(attention), ATTENTION_GRADIENT),
             Figure(f"difference of {len(samples)} gradients", max(samples), GRADIENT)]
    boxes, _, valid = mine.seen["proposals"]
    golden, present = golden_proposals(mine.archive)
    shares = [same_rows(boxes[i][valid[i]], golden[i][present[i]]) for i in range(len(boxes))]
    rows.append(Figure("proposals within .01 pixel", min(shares), 0.99, True))
    return rows + [Figure(f"samples of {stage} equal", share, 1, True) for stage, share in same_samples(mine).items()]


@functools.lru_cache(maxsize=1)
def run(name, form="auto"):
    """Our losses and gradients for the batch of `train_*.npz` of the configuration `name`; `form`: of RoIAlign."""
    archive = Archive(reference.find(f"train_{name.removeprefix('htd_')}.npz"))
    config = reference.config(name, form)
    batch = reference.training_batch([tuple(size) for size in archive["image_hws"]], int(archive["batch_seed"]))
    params, frozen = split(name, reference.state(name))
    loss = observe(functional.functions(config).loss)
    (_, (logs, seen)), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, frozen, batch, jax.random.key(0), golden_proposals(archive)))
    flat = {".".join(map(str, path)): x for path, x in traverse_util.flatten_dict(gradients).items()}
    gradients = {names.checkpoint_name(path): names.to_checkpoint(path, x) for path, x in flat.items()}
    return Run(archive, batch, logs, gradients, seen, rpn_samples(batch, seen["rpn"][2], config))


def split(name, state):
    """(params, frozen) of a model's arrays, as training holds them."""
    graphdef = nnx.graphdef(reference.abstract(name))
    _, params, frozen = nnx.split(nnx.merge(graphdef, state), trainable(reference.config(name).model), ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def golden_proposals(archive):
    """Boxes `[B, N, 4]` and valid `[B, N]`; images may have different numbers of them."""
    lists = [archive["proposals.0"][:, :4], archive["proposals.1"][:, :4]]
    count = max(map(len, lists))
    boxes = np.stack([np.pad(boxes, ((0, count - len(boxes)), (0, 0))) for boxes in lists])
    return boxes, np.arange(count) < np.array([len(boxes) for boxes in lists])[:, None]


def observe(loss):
    """The training loss with given proposals in place of its own.

    The function returned takes them last, and gives besides the logs what it saw: `rpn`, the arguments of
    `batch_proposals`; `proposals`, its result; `rois`, the sampled RoIs of both stages.
    """
    def observed(params, frozen, batch, key, given):
        seen = {"rois": []}

        def propose(*arguments):
            seen["rpn"], seen["proposals"] = arguments[:3], propose_truly(*arguments)
            return given[0], None, given[1]

        def sample(*arguments, **keywords):
            seen["rois"].append(sample_truly(*arguments, **keywords))
            return seen["rois"][-1]

        propose_truly, sample_truly = losses.batch_proposals, losses.sample_rois
        with mock.patch.multiple(losses, batch_proposals=propose, sample_rois=sample):
            total, logs = loss(params, frozen, batch, key)
        return total, (logs, seen)

    return observed


def rpn_samples(batch, shapes, config):
    """The RPN's `Sample` of each image, and the deltas to learn."""
    truth = GroundTruth(batch["boxes"], batch["labels"], batch["valid"])
    anchors = jnp.concatenate(grid_anchors([tuple(map(int, shape)) for shape in shapes]))
    one = lambda size, truth: anchor_targets(anchors, size, truth, config.train.rpn_samples, "first", jax.random.key(0))
    return jax.device_get(jax.vmap(one)(batch["size"], truth))


def all_anchors(run):
    """Anchors `[A, 4]` of all levels."""
    return np.concatenate(grid_anchors([tuple(map(int, shape)) for shape in run.seen["rpn"][2]]))


def by_anchors(maps):
    """Deltas `[B, N, 4]` in the anchors' order, from a level's `[B, 3, 4, H, W]`."""
    return maps.transpose(0, 3, 4, 1, 2).reshape(len(maps), -1, 4)


def loss_errors(run):
    """{name: relative error} of every loss; accuracies, percent, absolutely."""
    golden = {"total": run.logs["loss"], **run.logs} | rpn_losses_by_level(run)
    return {name: abs(float(golden[name] - run.archive[f"loss/{name}"])) if name.endswith("acc")
            else relative(golden[name], run.archive[f"loss/{name}"]) for name in run.archive.under("loss/")}


def rpn_losses_by_level(run):
    """{loss_rpn_cls.0, ...}: the RPN's losses over the sampled anchors of each level."""
    logits, deltas, _ = run.seen["rpn"]
    chosen, targets = run.anchors
    levels = np.repeat(np.arange(5), [level.shape[1] for level in logits])[chosen.index]
    logits, deltas = np.concatenate(logits, 1), np.concatenate(list(map(by_anchors, deltas)), 1)
    rows = np.arange(len(logits))[:, None]
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits[rows, chosen.index], chosen.positive)
    distance = smooth_l1(jnp.asarray(deltas[rows, chosen.index] - targets), rpn_loss.BETA).sum(-1)
    number = (np.maximum(chosen.positive.sum(1), 1) + np.maximum((chosen.valid & ~chosen.positive).sum(1), 1)).sum()
    over = lambda values, mask, k: float(np.where(mask & (levels == k), values, 0).sum() / number)
    return ({f"loss_rpn_cls.{k}": over(cross_entropy, chosen.valid, k) for k in range(5)}
            | {f"loss_rpn_bbox.{k}": over(distance, chosen.positive, k) for k in range(5)})


def gradient_bound(name):
    """What the norm of the gradient of this checkpoint name may be off by."""
    return ATTENTION_GRADIENT if name.startswith(ATTENTION) else GRADIENT


def gradient_errors(run):
    """Of every gradient, by name: (relative error of the norm, norm of the sampled entries' difference / norm)."""
    errors = {}
    for name in run.archive.under("grad/"):
        name, _, what = name.rpartition("/")
        if what == "norm" and name != ZERO_IN_THEORY:
            ours = run.gradients[name].astype(np.float64)
            norm, every, golden = (run.archive[f"grad/{name}/{key}"] for key in ("norm", "every", "sample"))
            difference = np.linalg.norm(ours.reshape(-1)[:: int(every)] - golden)
            scaled = difference / norm * (ours.size / golden.size)**0.5
            errors[name] = relative(np.linalg.norm(ours), norm), float(scaled)
    return errors


def same_samples(run):
    """{rpn, s0, s1: share of the sampled indices that are the original's}."""
    chosen = run.anchors[0]
    ours = {"rpn": (chosen.index, chosen.positive, chosen.valid)}
    ours |= {f"s{k}": (rois.index, rois.positive, rois.valid) for k, rois in enumerate(run.seen["rois"])}
    shares = {}
    for stage, sampled in ours.items():
        equal = []
        for i, (index, positive, valid) in enumerate(zip(*sampled)):
            place = positions(run, stage, i)
            for kind, mask in (("pos", positive), ("neg", valid & ~positive)):
                golden = run.archive[f"{stage}.sampling.{i}/{kind}_inds"]
                mine = place[index[mask]]
                equal.append(mine == golden if len(mine) == len(golden) else np.zeros(len(golden), bool))
        shares[stage] = float(np.concatenate(equal).mean())
    return shares


def positions(run, stage, i):
    """Where each of our candidates of `stage` (rpn, s0, s1) stands in the original's list for image i."""
    if stage == "rpn":  # the anchors inside the image alone
        anchors, (height, width) = all_anchors(run), run.batch["size"][i]
        listed = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    else:  # [ground truth, proposals]; stage 1's proposals are stage 0's sampled RoIs, less the ground truth
        first = run.seen["rois"][0]
        proposals = (np.ones(run.seen["proposals"][0].shape[1], bool) if stage == "s0"
                     else first.valid[i] & ~first.is_gt[i])
        listed = np.concatenate([run.batch["valid"][i], proposals])
    return np.cumsum(listed) - 1
