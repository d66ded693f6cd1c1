"""The next batches, sent to the devices while they still work on the one before."""
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
PATIENCE = 120  # seconds without a batch, after which it is said, again and again; at the end, nobody waits longer
_POLL = .2  # seconds between looks at whether the run is to end
_LEAVE = 5  # seconds that the thread has after a signal; one that waits for a dead disk never ends
_NAME = "prefetch of batches"


class Prefetch:
    """Iterator over (host batch, device batch); a thread keeps up to `ahead` of them ready."""

    def __init__(self, batches: Iterator, put: Callable, ahead: int = 2, ends: Callable[[], bool] = lambda: False):
        """`put` turns a host batch into a device batch. `batches.close()` is called where there is one.

        `ends`: whether the run is to end; then nobody waits for a batch that is late.
        """
        self._batches, self._put, self._ends = batches, put, ends
        self._ready, self._stopped = queue.Queue(ahead), threading.Event()
        self._thread = threading.Thread(target=self._fill, name=_NAME, daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> tuple | None:
        """The next batch, None where the run is to end before it comes.

        Raises in the caller's thread what went wrong in making the batch.
        """
        item = self._wait()
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        return item

    def close(self) -> None:
        """Ends the thread, unless it hangs (`hangs`); what is ready is dropped."""
        self._stopped.set()
        until = time.monotonic() + (_LEAVE if self._ends() else PATIENCE)
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                pass

    def _wait(self):
        said = time.monotonic()
        while True:
            try:
                return self._ready.get(timeout=_POLL)
            except queue.Empty:
                if self._ends():
                    return None
            if time.monotonic() - said >= PATIENCE:
                log.warning("no batch for %g seconds: is the disk or network with the images still there?", PATIENCE)
                said = time.monotonic()

    def _fill(self):
        try:
            for batch in self._batches:
                item = batch, self._put(batch)
                if self._stopped.is_set():
                    return
                self._ready.put(item)
            self._ready.put(StopIteration())
        except BaseException as error:
            self._ready.put(error)
        finally:
            if hasattr(self._batches, "close"):
                self._batches.close()


def hangs() -> bool:
    """Whether the thread of a `Prefetch` runs. Once that is closed, it waits for data that may never come."""
    return any(thread.name == _NAME for thread in threading.enumerate())
