"""Work beside the disk: one thread makes what comes next, another one hurries what is written to the disk."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

SYNC_BYTES = 1 << 27


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, made by a thread while the one before is in use; up to three of them are in memory.

    What making an item raises is raised here. The thread has ended when the iteration has, however it ends.
    """
    made: queue.Queue = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def make() -> None:
        end = _End(None)
        try:
            for item in items:
                made.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        made.put(end)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                made.get(timeout=0.01)  # it may be waiting for room
            except queue.Empty:
                continue


class _End:
    """Comes after the last item."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def drop_cached(descriptor: int, start: int, count: int) -> None:
    """`count` bytes of a file leave the system's cache: nobody will read them soon.

    Files larger than memory push out what others use. And where a virtual machine has to ask its host for memory, pages that
    were just given back are at hand, while new ones cost more than the disk (docs/benchmarks.md).
    """
    with contextlib.suppress(OSError):  # advice: where a file system takes none, it stays in the cache
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)


class Flusher:
    """Brings a file that is being written to the disk all the time, so that the last fsync has little left to wait for.

    Of a file of SYNC_BYTES or more, what is on the disk does not stay in the system's cache.

    Args:
        descriptor: of the file; it has to stay open until `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._written = self._unsynced = 0

    def wrote(self, count: int) -> None:
        """`count` more bytes were written."""
        self._written += count
        self._unsynced += count
        if self._unsynced >= SYNC_BYTES and (self._thread is None or not self._thread.is_alive()):
            self._unsynced = 0
            self._thread = threading.Thread(target=self._sync, args=(self._written,), daemon=True)
            self._thread.start()

    def close(self) -> OSError | None:
        """No thread uses the file any more. Returns what went wrong: the system tells of it only once."""
        if self._thread is not None:
            self._thread.join()
        return self._error

    def forget(self, count: int) -> None:
        """The first `count` bytes are on the disk."""
        if count >= SYNC_BYTES:
            drop_cached(self._descriptor, 0, count)

    def _sync(self, count: int) -> None:
        try:
            os.fdatasync(self._descriptor)
            self.forget(count)
        except OSError as error:
            self._error = error
