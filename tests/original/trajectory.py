"""Losses of successive SGD steps: `trajectory/` of `train_*.npz`, and `train_coco_r50.json` on real photographs.

Steps amplify rounding, so the bound after the first is what the same steps show when every weight is multiplied by
1 + 1e-6 n, n normal: ten times what that moves them.
"""
import contextlib
import itertools
import json

import jax
import numpy as np

from htd_jax import data, mesh as mesh_lib
from htd_jax.config import validate
from htd_jax.data import pipeline
from htd_jax.models import functional
from htd_jax.training import optimizer as optimizer_lib, schedule as schedule_lib, step as step_lib
from htd_jax.training.state import init_state
from original import reference
from original.figures import Archive, Figure, relative
from original.train import split

FIRST_LOSS, FIRST_TOTAL = 1e-3, 2e-4
AMPLIFIED = 10
DRAWS = (1, 2)  # perturbed runs; the largest movement counts
FAR = 10**6  # steps an epoch: no milestone on the way


def synthetic(name, draws=DRAWS):
    """Figures of the trajectory in `train_*.npz`, batches from seeds."""
    archive = Archive(reference.find(f"train_{name.removeprefix('htd_')}.npz"))
    config = reference.config(name)
    config.update(dict(lr=0.02, warmup_steps=10, batch_size=2))
    rates = [float(schedule_lib.learning_rate(config, FAR)(k)) for k in range(len(archive["trajectory/lr"]))]
    np.testing.assert_allclose(rates, archive["trajectory/lr"], rtol=1e-5)
    sizes = [tuple(size) for size in archive["image_hws"]]
    batches = [reference.training_batch(sizes, int(seed)) for seed in archive["trajectory/seeds"]]
    keys = [key for key in archive.under("trajectory/") if key not in ("lr", "seeds")]
    golden = [{key: float(archive[f"trajectory/{key}"][k]) for key in keys} for k in range(len(batches))]
    return compare(name, config, golden, lambda: batches, draws)


def photographs(folder, draws=DRAWS):
    """Figures of `train_coco_r50.json`: two photographs of COCO through the pipeline; `folder` is for annotations."""
    golden = json.loads(reference.find("train_coco_r50.json").read_text())
    config = reference.config("htd_r50")
    config.update(dict(lr=golden["lr"], momentum=golden["momentum"], weight_decay=golden["weight_decay"],
                       warmup_steps=0, batch_size=2))
    coco = reference.SHARED / "data" / "coco2017_mini"
    config.data.train.update(annotations=str(subset(coco, golden["images"], folder / "train.json")),
                             images=str(coco / "train2017"))
    config.data.update(scale=tuple(golden["scale"]), pad_to="exact", flip=0.0)
    dataset = data.open_dataset(validate(config), "train")
    assert [len(dataset.record(i).boxes) for i in range(2)] == golden["boxes"]

    def batches():
        with contextlib.closing(pipeline.train_batches(dataset, config)) as stream:
            yield from itertools.islice(stream, len(golden["steps"]))

    return compare("htd_r50", config, golden["steps"], batches, draws)


def subset(coco, image_ids, path):
    """COCO's training annotations of these photographs alone."""
    content = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in image_ids]
    path.write_text(json.dumps(content))
    return path


def compare(name, config, golden, batches, draws):
    """A figure for the first step's losses and total, and one for each later step."""
    step, fresh = prepare(name, config)
    ours = run(step, fresh(0), batches())
    moved = [run(step, fresh(draw), batches()) for draw in draws]
    first = errors(ours[0], golden[0])
    rows = [Figure("step 1, total", first.pop("total"), FIRST_TOTAL),
            Figure("step 1, every loss", max(first.values()), FIRST_LOSS)]
    for k in range(1, len(golden)):
        noise = max(max(errors(other[k], ours[k]).values()) for other in moved)
        rows.append(Figure(f"step {k + 1}, every loss", max(errors(ours[k], golden[k]).values()), AMPLIFIED * noise))
    return rows


def errors(logs, golden):
    """{loss: relative error}, `total` among them."""
    return {key: relative(logs[key], value) for key, value in golden.items() if not key.endswith("acc")}


def prepare(name, config):
    """The compiled training step, and draw -> its state with the reference weights (0) or perturbed ones."""
    model, schedule = functional.functions(config), schedule_lib.learning_rate(config, FAR)
    optimizer, mesh = optimizer_lib.sgd(config, schedule), mesh_lib.make_mesh(jax.devices()[:1])
    step = step_lib.make_step(model.loss, optimizer, schedule, mesh, config)

    def fresh(draw):
        params, frozen = split(name, reference.state(name, draw))
        return mesh_lib.replicate(init_state(params, frozen, optimizer), mesh)

    return lambda state, batch: step(state, mesh_lib.put_local_rows(batch, mesh)), fresh


def run(step, state, batches):
    """The logs of each step."""
    logs = []
    for batch in batches:
        state, log = step(state, {key: value for key, value in batch.items() if isinstance(value, np.ndarray)})
        logs.append({key: float(value) for key, value in log.items()} | {"total": float(log["loss"])})
    return logs
