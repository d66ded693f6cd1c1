"""The next batch, on its way to the devices while they still work on the one before."""
import queue
import threading


class Prefetch:
    """Iterator over (host batch, device batch); a thread keeps up to `ahead` of them ready."""

    def __init__(self, batches, put, ahead=2):
        """Args: batches: iterator of host batches; its `close()` is called where it has one. put: host -> device batch."""
        self._batches, self._put = batches, put
        self._ready, self._stopped = queue.Queue(ahead), threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        """Raises in the caller's thread what went wrong in making the batch."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)
            raise item
        return item

    def close(self):
        """Ends the thread; what is ready is dropped."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                pass
        if hasattr(self._batches, "close"):
            self._batches.close()

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
