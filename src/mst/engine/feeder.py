"""Batches from a source that may hang: it is iterated in a thread of its own, so that whoever waits can leave."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from mst.runtime.leaving import leave_behind
from mst.runtime.signals import GracefulStop

Batch = TypeVar("Batch")
GLANCE = 0.05
"""Seconds between two looks at whether a signal came."""
PATIENCE = 2.0
"""Seconds that a batch may still take after a signal; then the step is left out. Containers are killed after ten."""
CLOSING = 3.0
"""Seconds that a source may take to end."""


class Feeder(Generic[Batch]):
    """Takes batches from a source, one step's at a time, when asked: it reads no more than `ahead` steps ahead.

    A thread that hangs in its source (a dead network mount) cannot be ended; it is left behind, and the command line
    ends the process without it.
    """

    def __init__(self, source: Callable[[], Iterator[Batch]], *, ahead: int = 0) -> None:
        """Take batches from what `source` returns; it is called in the thread.

        Args:
            source: of the batches.
            ahead: so many steps' batches are taken before they are asked for, where a device works meanwhile.
        """
        self._source = source
        self._ahead = ahead
        self._closing = False
        self._wanted: SimpleQueue[int] = SimpleQueue()
        self._found: SimpleQueue[list[Batch] | BaseException] = SimpleQueue()
        self._others: set[BaseProcess] = set()
        self._thread: threading.Thread | None = None

    def take(self, count: int, stop: GracefulStop) -> list[Batch] | None:
        """Return the next `count` batches, fewer at the end; None where a signal came and they did not.

        Raises:
            BaseException: whatever the source raises.
        """
        if self._thread is None:
            self._others = {*multiprocessing.active_children()}
            self._thread = threading.Thread(target=self._run, name="mst-feeder", daemon=True)
            self._thread.start()
            for _ in range(self._ahead):
                self._wanted.put(count)
        self._wanted.put(count)
        signalled: float | None = None
        while True:
            try:
                found = self._found.get(timeout=GLANCE)
            except Empty:
                now = time.monotonic()
                if signalled is None and stop.signum is not None:
                    signalled = now
                if signalled is not None and now - signalled > PATIENCE:
                    return None
                continue
            if isinstance(found, BaseException):
                raise found
            return found

    def close(self) -> None:
        """End the source. One that hangs is left behind, its processes are killed."""
        if self._thread is None:
            return
        self._closing = True
        self._wanted.put(0)
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            for process in {*multiprocessing.active_children()} - self._others:
                process.kill()
            leave_behind()

    def _run(self) -> None:
        try:
            source = self._source()
            while (count := self._wanted.get()) and not self._closing:
                self._found.put(list(itertools.islice(source, count)))
        except BaseException as error:  # it is the caller's
            self._found.put(error)
            return
        with suppress(AttributeError):  # an iterator that is no generator has nothing to close
            source.close()  # type: ignore[attr-defined]
