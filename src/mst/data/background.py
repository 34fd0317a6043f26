"""An executor of one thread that never keeps the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

CLOSING = 5.0
"""Seconds that `shutdown` waits for what is being read."""


class BackgroundThread(Executor):
    """Calls functions one after the other in a daemon thread.

    `ThreadPoolExecutor` joins its threads when the interpreter ends: one that hangs in a read (a dead network mount, a
    pipe in an image's place) would keep the process for ever.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._pending: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of fn(*args, **kwargs)."""
        future: Future[Any] = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after what waits, or with `cancel_futures` after the present call; wait a few seconds."""
        if cancel_futures:
            for future in list(self._pending):
                future.cancel()
        self._calls.put(None)
        if wait:
            self._thread.join(CLOSING)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # it is the caller's
                future.set_exception(error)
