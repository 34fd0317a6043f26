"""Reading ahead in threads that never keep the process from ending, in order, whoever reads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from mst.runtime.leaving import leave_behind

Item = TypeVar("Item")
Read = TypeVar("Read")

CLOSING = 5.0
"""Seconds that `shutdown` waits for what is being read."""
READERS = 2
"""Threads that read where no option says how many."""
PER_THREAD = 2
"""Items that are read ahead for each thread, at least."""


class BackgroundThreads(Executor):
    """Calls functions in daemon threads, in the order in which they come.

    `ThreadPoolExecutor` joins its threads when the interpreter ends: one that hangs in a read (a dead network mount, a
    pipe in an image's place) would keep the process for ever.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of fn(*args, **kwargs)."""
        future: Future[Any] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads after what waits, or with `cancel_futures` after the present calls; wait a few seconds.

        A thread that is still reading then is left behind: Python aborts if it comes back from a library while Python
        ends.
        """
        while cancel_futures:
            try:
                call = self._calls.get_nowait()
            except Empty:
                break
            if call is not None:
                call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join(CLOSING)
            if any(thread.is_alive() for thread in self._threads):
                leave_behind()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # it is the caller's
                    future.set_exception(error)
            del call, future, function  # what was read is the caller's alone


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], executor: Executor, *, ahead: int
) -> Generator[Read, None, None]:
    """Yield `read(item)` in order while the executor works on the next ones. Errors come out where their item would.

    Args:
        read: called in the executor's threads or processes.
        items: taken in the caller's thread, as they are needed.
        executor: stays open.
        ahead: so many items are read or being read at any time.
    """
    waiting: deque[Future[Read]] = deque()
    for item in items:
        waiting.append(executor.submit(read, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_in_threads(
    read: Callable[[Item], Read], items: Iterable[Item], workers: int = READERS, *, ahead: int = 0
) -> Generator[Read, None, None]:
    """Do `read_ahead` with threads of its own, which end with it; at least `PER_THREAD` items for each of them."""
    executor = BackgroundThreads("mst-reader", workers)
    try:
        yield from read_ahead(read, items, executor, ahead=max(ahead, PER_THREAD * workers) + 1)
    finally:
        executor.shutdown(cancel_futures=True)
