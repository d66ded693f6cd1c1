"""The next batches, sent to the devices while they still work on the one before."""
import logging
import queue
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
PATIENCE = 120  # seconds without a batch, after which it is said, again and again


class Prefetch:
    """Iterator over (host batch, device batch); a thread keeps up to `ahead` of them ready."""

    def __init__(self, batches: Iterator, put: Callable, ahead: int = 2):
        """`put` turns a host batch into a device batch. `batches.close()` is called where there is one."""
        self._batches, self._put = batches, put
        self._ready, self._stopped = queue.Queue(ahead), threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> tuple:
        """Raises in the caller's thread what went wrong in making the batch."""
        item = self._wait()
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        return item

    def close(self) -> None:
        """Ends the thread; what is ready is dropped."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                pass
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _wait(self):
        while True:
            try:
                return self._ready.get(timeout=PATIENCE)
            except queue.Empty:
                log.warning("no batch for %d seconds: is the disk or network with the images still there?", PATIENCE)

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
