"""Training from beginning to end: `train`, and the loop itself, `run`."""
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32
from ml_collections import ConfigDict

from htd_jax import data as data_lib, mesh as mesh_lib, paths
from htd_jax.checkpoints import Checkpoints, travelling, write_about
from htd_jax.data import Dataset, checks, classes, pipeline
from htd_jax.errors import UserError, writing_to
from htd_jax.evaluation import coco, drawing, run_logs, runner
from htd_jax.models import functional
from htd_jax.training import guards, optimizer as optimizer_lib, run_classes, schedule as schedule_lib, step as step_lib
from htd_jax.training.metrics import EVALUATIONS, Logbook, since_best
from htd_jax.training.prefetch import Prefetch
from htd_jax.training.state import changed_settings, initial_state

Labels = Int32[np.ndarray, " K"]


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict | None:
    """Trains as `config` says, from the newest checkpoint of `workdir` where it has one.

    Args:
        config: a valid configuration; model.num_classes is set from the annotations where it is unset.
        workdir: folder for config.json, categories.json, metrics.jsonl, evaluations.jsonl, TensorBoard events,
            checkpoints/ and, at the end, eval/. Several processes share it.
    Returns:
        The metrics of the last evaluation, of a finished run its stored numbers; None where the run was stopped before
        one, or has no validation set.
    Raises UserError for everything that a user can fix. A start that trains nothing changes nothing.
    """
    # ---- data: errors in it are found before a device is touched
    workdir = paths.absolute(workdir)
    dataset, validation, labels = open_data(config, workdir)

    # ---- devices
    mesh_lib.keep_compiled(config.compilation_cache)
    if config.distributed:
        mesh_lib.start_processes()
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.batch_size, config.accumulate, mesh)
    with writing_to(f"the workdir {workdir}"):
        paths.make_folder(workdir)

    with contextlib.ExitStack() as stack:
        stack.enter_context(guards.only_run(workdir))

        # ---- state: the newest checkpoint, else init_from, else fresh
        functions = functional.functions(config)
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints))
        optimizer = optimizer_lib.build(config, lambda step: 0.0)  # for the shapes of its state
        start, state = initial_state(functions, optimizer, config, mesh, checkpoints,
                                     run_classes.starts_anew(dataset, config))

        # ---- schedule: epochs are counted by the images seen
        steps_per_epoch = pipeline.steps_per_epoch(dataset, config)
        first = schedule_lib.first_step(start, checkpoints.about(start).get("epochs"), steps_per_epoch)
        total = schedule_lib.total_steps(config, steps_per_epoch, first)
        schedule = schedule_lib.learning_rate(config, steps_per_epoch, first)
        optimizer = optimizer_lib.build(config, schedule)
        step_fn = step_lib.make_step(functions.loss, optimizer, schedule, mesh, config)

        # ---- logs; the workdir tells of this start once it is known to train
        main = jax.process_index() == 0
        if is_finished(workdir, start, total, config, validation):
            return show_finished(workdir, start, total)
        if main and start < total:
            with writing_to(f"the workdir {workdir}"):
                write_about(workdir, config, dataset.categories)
        logbook = stack.enter_context(Logbook(workdir, start, total, config.batch_size, config.log_every, main))
        logbook.say(f"{checks.describe(dataset)}, {steps_per_epoch} steps an epoch, {total} steps, {mesh.size} devices "
                    f"({jax.devices()[0].device_kind}), " + (f"resuming from step {start}" if start else "from step 0"))
        if changed := changed_settings(checkpoints.about(start), config):
            logbook.say(f"from here on with other settings: {', '.join(changed)}")

        # ---- loop
        stream = pipeline.train_batches(dataset, config, start - first, jax.process_index(), jax.process_count())
        preemption = stack.enter_context(guards.Preemption())
        batches = stack.enter_context(contextlib.closing(Prefetch(
            stream, functools.partial(_to_devices, mesh=mesh), ends=preemption.received)))
        metrics = run(
            state, start, total, config, step_fn=step_fn, batches=batches, checkpoints=checkpoints, logbook=logbook,
            evaluate=validator(functions, validation, config, mesh, workdir, total, labels, logbook.pictures),
            about=functools.partial(_about, config, dataset.categories, first, steps_per_epoch),
            skipped=pipeline.SkippedImages(dataset),
            guard=functools.partial(guards.check_finite, dataset=dataset, workdir=workdir),
            preemption=preemption)
    if main:
        _show(metrics, workdir)
    return metrics


def run(state: dict, start: int, total: int, config: ConfigDict, *, step_fn: Callable, batches: Iterator,
        evaluate: Callable | None, checkpoints: Checkpoints, logbook: Logbook, about: Callable, guard: Callable,
        skipped: pipeline.SkippedImages, preemption: guards.Preemption) -> dict | None:
    """The loop. Its order is a rule: save the old state, evaluate it, take the next batch, step, log.

    So a saved state is never ahead of the data it has seen, nor of the logs, and an evaluation that fails loses
    nothing. Logs are read one step late: the devices have the next step before the host looks at the last one, and
    never wait for it.

    Args:
        state: after `start` updates; consumed.
        total: updates after which to end, if `patience` does not end the run before.
        config: uses eval_every, patience, checkpoint_every.
        step_fn: (state, batch) -> (state, logs).
        batches: (host batch, device batch) from step `start` on; None where a signal comes before the next one.
        evaluate: (step, state) -> metrics.
        about: step -> what is saved with it.
        guard: (step, logs, host batch); raises where the logs are not finite.
    Returns:
        The metrics of the last evaluation, None where there was none.
    """
    unread, shapes, metrics = None, set(), None  # unread: (step, logs, host batch) of the last step

    def read_logs():
        nonlocal unread
        if unread is not None:
            (done, logs, batch), unread = unread, None
            logs = {name: float(value) for name, value in jax.device_get(logs).items()}
            guard(done, logs, batch)
            logbook.step(done, logs, skipped.count)

    def stop(step, late=""):
        if step > start:
            read_logs()
            checkpoints.save(step, state, about(step))
        checkpoints.wait()
        logbook.say(f"stopped by {preemption.signal} after step {step}{late}; the same command resumes there")
        return metrics

    for step in range(start, total + 1):
        # ---- save, then evaluate, the state after `step` updates
        if preemption.reached(step):
            return stop(step)
        due = evaluate and is_due(step, config.eval_every, total) and not logbook.evaluated(step)
        if due or (step > start and is_due(step, config.checkpoint_every, total)):
            read_logs()
            with logbook.clock.pause():
                checkpoints.save(step, state, about(step))
                if due:
                    metrics = evaluate(step, state)
                    logbook.evaluation(step, metrics)
                    checkpoints.score(step, metrics["AP"])
        since, best = logbook.evaluations_since_best()
        worn_out = 0 < config.patience <= since
        if worn_out and step < total:
            logbook.say(f"AP has not improved in {since} evaluations: training ends after step {step}; the best is "
                        f"checkpoints/{best}")
        if worn_out or step == total:
            return metrics

        checkpoints.check()

        # ---- the next batch
        item = _next(batches, unread, logbook)
        if item is None:
            return stop(step, ", whose next batch was late: is the disk or network with the images still there?")
        batch, on_devices = item
        skipped.add(batch.get("skipped", ()), len(batch["index"]))

        # ---- step; a new shape compiles, which is not time spent training
        fresh = batch["image"].shape not in shapes
        shapes.add(batch["image"].shape)
        if fresh:
            read_logs()
        with logbook.clock.pause() if fresh else contextlib.nullcontext():
            state, logs = step_fn(state, on_devices)

        # ---- log the step before
        read_logs()
        unread = step + 1, logs, batch


def is_due(step: int, every: int, total: int) -> bool:
    """Every so many steps (0: never) and at the end; not before the first step."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def open_data(config: ConfigDict, workdir: paths.Path) -> tuple[Dataset, Dataset | None, Labels | None]:
    """Opens the data; sets num_classes.

    Returns:
        The training set, its classes in the order of the run; the validation set, None where
        config.data.val.annotations is empty; the label in it of each of the run's classes.
    Raises UserError where the classes of the two, or of the run, differ, or are more than those of the model.
    """
    dataset = run_classes.arrange(data_lib.open_dataset(config, "train"), config, workdir)
    validates = config.data.source in ("tfds", "demo") or config.data.val.annotations
    validation = data_lib.open_dataset(config, "val") if validates else None
    if len(dataset) == 0:
        raise UserError("the training set has no image that can be trained on")
    checks.check_learnable(dataset)
    labels = None
    if validation:
        labels = classes.scored_labels(dataset.categories, validation.categories, "the training set",
                                       "the validation set")
        checks.warn_without_boxes(validation)
    count = len(dataset.categories)
    if config.model.num_classes is None:
        config.model.num_classes = count
    if config.model.num_classes < count:
        raise UserError(f"config.model.num_classes (={config.model.num_classes}) is less than the {count} categories "
                        "of the annotations")
    return dataset, validation, labels


def is_finished(workdir: paths.Path, start: int, total: int, config: ConfigDict, validation: Dataset | None) -> bool:
    """Whether nothing is left to train, nor to evaluate: at its last step, or since `patience` has ended the run."""
    evaluations = [row for row in run_logs.rows(workdir / EVALUATIONS) if row["step"] <= start]
    evaluated = validation is None or any(row["step"] == start for row in evaluations)
    worn_out = 0 < config.patience <= since_best(evaluations)[0]
    due = is_due(start, config.eval_every, total) and not evaluated
    return start > total or (not due and (worn_out or start == total))


def show_finished(workdir: paths.Path, start: int, total: int) -> dict | None:
    """Says so, with the numbers of the last evaluation; returns them, None where there was none."""
    evaluations = run_logs.rows(workdir / EVALUATIONS)
    metrics = (evaluations or [None])[-1]
    if jax.process_index() == 0:
        evaluated = f"; evaluated at step {metrics['step']}" if metrics else ""
        since, best = since_best(evaluations)
        ended = f"; AP had not improved in {since} evaluations, the best is checkpoints/{best}" if start < total else ""
        print(f"finished: step {start} of {total}{evaluated}{ended}", file=sys.stderr)
        _show(metrics, workdir)
    return metrics


def validator(functions: functional.Functions, validation: Dataset | None, config: ConfigDict, mesh: Mesh,
              workdir: paths.Path, total: int, labels: Labels | None = None,
              show: Callable | None = None) -> Callable | None:
    """Returns (step, state) -> metrics, or None where there is nothing to validate on.

    The averaged weights are evaluated where the run has them. The last evaluation leaves its files in WORKDIR/eval.
    `labels`: the label in the validation set of each of the run's classes. `show`: called on process 0 with (step, some
    pictures with their detections, by name).
    """
    if validation is None:
        return None
    detect_fn = runner.compile_detect(functions.detect, mesh)

    def evaluate(step, state):
        weights = mesh_lib.local_copies((state.get("ema", state["params"]), state["frozen"]), mesh)
        output = workdir / "eval" if step == total else None
        watch = show and (lambda detections: show(step, drawing.samples(validation, detections)))
        return runner.evaluate(functools.partial(detect_fn, weights), validation, config, output, mesh, labels, workdir,
                               watch)

    return evaluate


def _to_devices(batch, mesh):
    """The arrays of a host batch on the devices; what is no array stays behind."""
    return mesh_lib.put_local_rows({k: v for k, v in batch.items() if isinstance(v, np.ndarray)}, mesh)


def _next(batches, unread, logbook):
    """The next batch. The devices waited for it if they had finished the last step when it came."""
    began = time.perf_counter()
    batch = next(batches)
    if unread is None or unread[1]["loss"].is_ready():
        logbook.waited(time.perf_counter() - began)
    return batch


def _about(config, categories, first, steps_per_epoch, step):
    """What travels with the checkpoint of a step."""
    return travelling(config, categories) | dict(epochs=(step - first) / steps_per_epoch)


def _show(metrics, workdir):
    """The numbers, where there are some, and where everything is."""
    if metrics:
        print("\n".join(f"{name:>5} {metrics[name]:.4f}" for name in coco.METRICS))
    print(f"checkpoints, metrics.jsonl and config.json: {workdir} (curves: tensorboard --logdir {workdir})",
          file=sys.stderr)
    if (report := workdir / "eval" / "report.html").is_file():
        print(f"numbers, errors and images of the last evaluation: {report}", file=sys.stderr)
