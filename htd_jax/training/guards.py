"""What ends a run early or keeps it from starting: losses that are not finite, preemption, another run."""
import contextlib
import fcntl
import io
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from htd_jax import paths
from htd_jax.data import Images
from htd_jax.errors import UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_run(workdir: paths.Path) -> Iterator[None]:
    """Holds the workdir, for two runs would write over each other; UserError where another run holds it.

    The folder itself is locked, by process 0: nothing is left in it, and a run that is killed lets go of it. A bucket
    knows no locks, which is said.
    """
    if jax.process_index() > 0:
        yield
        return
    if paths.in_bucket(workdir):
        log.warning("%s cannot be locked: do not start a second run there", workdir)
        yield
        return
    folder = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is training in the workdir {workdir}: wait for its end, stop it, or give "
                            "another --workdir") from None
        except OSError as error:  # some network file systems know no locks
            log.warning("%s cannot be locked (%s): do not start a second run there", workdir, error.strerror)
        yield
    finally:
        os.close(folder)


def check_finite(step: int, logs: dict[str, float], batch: dict, dataset: Images, workdir: paths.Path) -> None:
    """Raises UserError naming step, losses and image ids, and saves the batch, where loss or gradient is not finite.

    `step` counts the updates with this one; the batch, this process's rows on the host, goes to
    `nonfinite_step_STEP.npz` for replay (of process p > 0: with `_pP`).
    """
    if math.isfinite(logs["loss"]) and math.isfinite(logs["grad_norm"]):
        return
    process = f"_p{jax.process_index()}" if jax.process_index() else ""
    path = workdir / f"nonfinite_step_{step}{process}.npz"
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value for key, value in batch.items() if isinstance(value, np.ndarray)})
    paths.write(path, buffer.getvalue())
    ids = [dataset.record(int(i)).image_id for i in batch["index"]]
    losses = ", ".join(f"{name} {value:.6g}" for name, value in logs.items())
    raise UserError(f"loss or gradient not finite at step {step}: {losses}; image ids {ids}; the batch is in {path}. "
                    "A lower lr, a longer warm-up or config.clip_norm may help; the last checkpoint is from before")


class Preemption:
    """Whether the run has received SIGTERM, or SIGINT as Ctrl-C sends it. A context manager.

    A second signal ends the process at once. With several processes JAX's own service listens for SIGTERM and lets all
    of them agree on the step; SIGINT is passed on to it.
    """

    def __init__(self):
        self._received, self._before = None, {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            handlers = {signal.SIGTERM: self._receive, signal.SIGINT: self._receive} if alone else {
                signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        self._received = number
        for handled in self._before:
            signal.signal(handled, signal.SIG_DFL)

    def received(self) -> bool:
        """Whether this process alone is to end, at once. Of several none ends before all know the step: `reached`."""
        return self._received is not None

    @property
    def signal(self) -> str:
        """The name of the signal."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def reached(self, step: int) -> bool:
        """Call before every step, with its number; true for all processes at the same one."""
        if jax.process_count() > 1:
            with contextlib.suppress(RuntimeError):  # the service is switched off
                return multihost_utils.reached_preemption_sync_point(step)
        return self.received()
