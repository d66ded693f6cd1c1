"""Training from beginning to end: `train`, and the loop itself, `run`."""
import contextlib
import functools
import pathlib
import time

import jax
import numpy as np

from htd_jax import compilation, data as data_lib, mesh as mesh_lib
from htd_jax.checkpoints import Checkpoints, write_about
from htd_jax.data import pipeline
from htd_jax.errors import UserError
from htd_jax.evaluation import coco, runner
from htd_jax.models import functional
from htd_jax.training import guards, optimizer as optimizer_lib, schedule as schedule_lib, step as step_lib
from htd_jax.training.metrics import Logbook
from htd_jax.training.prefetch import Prefetch
from htd_jax.training.state import initial_state


def train(config, workdir):
    """Trains as `config` says, from the newest checkpoint of `workdir` where it has one.

    Args:
        config: a valid configuration; model.num_classes is set from the annotations where it is unset.
        workdir: folder for config.json, categories.json, metrics.jsonl, evaluations.jsonl, TensorBoard events,
            checkpoints/ and, at the end, eval/. Several processes share it.
    Returns:
        The metrics of the last evaluation, or None where the run was told to end, or validates on nothing.
    Raises UserError for everything that a user can mend.
    """
    # ---- data: everything that can be wrong with it is found before a device is touched
    dataset, validation = open_data(config)

    # ---- devices
    compilation.use_cache(config)
    if config.distributed:
        mesh_lib.start_processes()
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.batch_size, config.accumulate, mesh)
    workdir = make_workdir(workdir, config, dataset)

    # ---- model and optimiser
    functions = functional.functions(config)
    steps_per_epoch = pipeline.steps_per_epoch(dataset, config)
    total = schedule_lib.total_steps(config, steps_per_epoch)
    schedule = schedule_lib.learning_rate(config, steps_per_epoch)
    optimizer = optimizer_lib.sgd(config, schedule)
    step_fn = step_lib.make_step(functions.loss, optimizer, schedule, mesh, config)

    with contextlib.ExitStack() as stack:
        # ---- state: the newest checkpoint, else init_from, else fresh
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints))
        start, state = initial_state(functions, optimizer, config, mesh, checkpoints)

        # ---- logs
        main = jax.process_index() == 0
        logbook = stack.enter_context(Logbook(workdir, start, total, config.batch_size, config.log_every, main))
        logbook.say(f"{len(dataset)} images, {steps_per_epoch} steps an epoch, {total} steps, {mesh.size} devices "
                    f"({jax.devices()[0].device_kind}), " + (f"going on from step {start}" if start else "from the start"))

        # ---- loop
        stream = pipeline.train_batches(dataset, config, start, jax.process_index(), jax.process_count())
        batches = stack.enter_context(contextlib.closing(Prefetch(stream, functools.partial(_to_devices, mesh=mesh))))
        metrics = run(
            state, start, total, config, step_fn=step_fn, batches=batches, checkpoints=checkpoints, logbook=logbook,
            evaluate=validator(functions, validation, config, mesh, workdir, total), skipped=pipeline.SkippedImages(dataset),
            guard=functools.partial(guards.check_finite, dataset=dataset, workdir=workdir),
            preemption=stack.enter_context(guards.Preemption()))
    if metrics and main:
        print("\n".join(f"{name:>5} {metrics[name]:.4f}" for name in coco.METRICS))
    return metrics


def run(state, start, total, config, *, step_fn, batches, evaluate, checkpoints, logbook, guard, skipped, preemption):
    """The loop. Its order is a rule: evaluate the old state, save it, take the next batch, step, log.

    So a saved state is never ahead of the data it has seen, nor of the logs. Logs are read one step late: the devices
    have the next step before the host looks at the last one, and never wait for it.

    Args:
        state: after `start` updates; consumed.
        total: updates after which to end.
        config: uses eval_every, checkpoint_every.
        step_fn: (state, batch) -> (state, logs).
        batches: iterator over (host batch, device batch) from step `start` on.
        evaluate: (step, state) -> metrics, or None.
        checkpoints, logbook, skipped, preemption: Checkpoints, Logbook, SkippedImages, Preemption.
        guard: (step, logs, host batch); raises where the logs are not finite.
    Returns:
        The metrics of the last evaluation, None where there was none.
    """
    late, shapes, metrics = None, set(), None

    def read_late():
        nonlocal late
        if late is not None:
            (done, logs, batch), late = late, None
            logs = {name: float(value) for name, value in jax.device_get(logs).items()}
            guard(done, logs, batch)
            logbook.step(done, logs, skipped.count)

    for step in range(start, total + 1):
        # ---- evaluate, then save, the state after `step` updates
        told = preemption.reached(step)
        due = evaluate and not told and is_due(step, config.eval_every, total) and not logbook.evaluated(step)
        if due or (step > start and (told or is_due(step, config.checkpoint_every, total))):
            read_late()
            with logbook.clock.pause():
                metrics = evaluate(step, state) if due else metrics
                if due:
                    logbook.evaluation(step, metrics)
                checkpoints.save(step, state, metrics["AP"] if due else None)
        if told:
            checkpoints.wait()
            logbook.say(f"told to end after step {step}; the same command goes on from there")
        if told or step == total:
            return metrics

        checkpoints.check()

        # ---- the next batch
        batch, on_devices = _next(batches, late, logbook)
        skipped.add(batch.get("skipped", ()), len(batch["index"]))

        # ---- step; a new shape compiles, which is not time spent training
        fresh = batch["image"].shape not in shapes
        shapes.add(batch["image"].shape)
        if fresh:
            read_late()
        with logbook.clock.pause() if fresh else contextlib.nullcontext():
            state, logs = step_fn(state, on_devices)

        # ---- log the step before
        read_late()
        late = step + 1, logs, batch


def is_due(step, every, total):
    """Every so many steps (0: never) and at the end; not before the first step."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def open_data(config):
    """Opens the training and the validation set (None where config.data.val.annotations is empty); sets num_classes.

    Raises UserError where their categories differ or are more than the classes of the model.
    """
    dataset = data_lib.open_dataset(config, "train")
    validates = config.data.source != "coco" or config.data.val.annotations
    validation = data_lib.open_dataset(config, "val") if validates else None
    if len(dataset) == 0:
        raise UserError("the training set has no image that can be trained on")
    if validation and tuple(validation.categories) != tuple(dataset.categories):
        raise UserError(f"the categories of training ({_names(dataset)}) and validation ({_names(validation)}) differ")
    if config.model.num_classes is None:
        config.model.num_classes = len(dataset.categories)
    if config.model.num_classes < len(dataset.categories):
        raise UserError(f"config.model.num_classes (={config.model.num_classes}) is less than the "
                        f"{len(dataset.categories)} categories of the annotations")
    return dataset, validation


def make_workdir(workdir, config, dataset):
    """Makes the folder with config.json and categories.json in it; UserError where it cannot be written to."""
    workdir = pathlib.Path(workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_about(workdir, config, dataset.categories)
    except OSError as error:
        raise UserError(f"cannot write to the workdir {workdir}: {error.strerror}") from error
    return workdir


def validator(functions, validation, config, mesh, workdir, total):
    """Returns (step, state) -> metrics, or None where there is nothing to validate on.

    The averaged weights are evaluated where the run has them. The last evaluation leaves its files in WORKDIR/eval.
    """
    if validation is None:
        return None
    detect_fn = runner.compile_detect(functions.detect, mesh)

    def evaluate(step, state):
        weights = mesh_lib.local_copies((state.get("ema", state["params"]), state["frozen"]), mesh)
        output = workdir / "eval" if step == total else None
        return runner.evaluate(functools.partial(detect_fn, weights), validation, config, output, mesh)

    return evaluate


def _to_devices(batch, mesh):
    """The arrays of a host batch on the devices; what is no array stays behind."""
    return mesh_lib.put_local_rows({k: v for k, v in batch.items() if isinstance(v, np.ndarray)}, mesh)


def _next(batches, late, logbook):
    """The next batch. The devices waited for it if they had finished the last step when it came."""
    began = time.perf_counter()
    batch = next(batches)
    if late is None or late[1]["loss"].is_ready():
        logbook.waited(time.perf_counter() - began)
    return batch


def _names(dataset):
    shown = [f"{c.id} {c.name}" for c in dataset.categories[:4]]
    return f"{len(dataset.categories)}: {', '.join(shown)}, ..."
