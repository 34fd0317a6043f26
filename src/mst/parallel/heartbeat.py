"""A process that falls silent is named, and ends the run: its host was cut off, or it hangs as a whole.

A process that ends is noticed by the others at once, because the system closes its connections. One whose host is cut
off closes nothing: the others would wait in a sum for as long as they may. So each process says every few seconds, in
the store where they met, that it is there; the first one listens to all, the others listen to the first.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

EVERY = 5.0
"""Seconds between two signs of life."""
PATIENCE = 60.0
"""Seconds of silence after which a process counts as lost: far more than one is busy without a break."""
DONE = "done"
TRY_AGAIN = 75
"""Exit status of a process that has lost another: sysexits' EX_TEMPFAIL."""


def end_at_once(message: str) -> None:
    """Say why, and end this process as it is: its main thread waits in a sum."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"mst: error: {message}\n".encode())  # type: ignore[union-attr]
    os._exit(TRY_AGAIN)


class Heartbeat:
    """Signs of life of this process, and an ear for others; both in threads of their own."""

    def __init__(
        self,
        connect: Callable[[], Store],
        names: list[str],
        rank: int,
        *,
        every: float = EVERY,
        patience: float = PATIENCE,
        lost: Callable[[str], None] = end_at_once,
    ) -> None:
        """Begin.

        Args:
            connect: gives the store, by a connection of this object's own: one that waits must not hold up others.
            names: of all processes, by rank.
            rank: of this one.
            every: seconds between two signs.
            patience: seconds of silence after which one is lost.
            lost: what to do then; gets one line.
        """
        self._connect, self._names, self._rank = connect, names, rank
        self._every, self._patience, self._lost = every, patience, lost
        self._ended = threading.Event()
        now = time.monotonic()
        self._heard = dict.fromkeys([0] if rank else range(1, len(names)), now)
        self._threads = [
            threading.Thread(target=work, name=f"mst-heartbeat-{work.__name__}", daemon=True)
            for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Say that this process ends in good order, and listen no more.

        A sign of life that is still on its way then is waited for once more before Python ends: Python aborts if a
        thread comes back from the store while it ends (pytorch #38228).
        """
        self._ended.set()
        self._threads[0].join(self._every)
        if self._threads[0].is_alive():
            atexit.register(self._threads[0].join, self._patience)

    def _beat(self) -> None:
        """Give signs, and note whose new ones are there."""
        last = dict[int, bytes]()
        with suppress(RuntimeError):  # the store is gone: with the process that held it, or its host
            store = self._connect()
            for count in itertools.count():
                ended = self._ended.is_set()
                store.set(f"beat/{self._rank}", DONE if ended else str(count))
                if ended:
                    return
                for rank in list(self._heard):
                    key = f"beat/{rank}"
                    if store.check([key]) and (sign := store.get(key)) != last.get(rank):
                        last[rank], self._heard[rank] = sign, time.monotonic()
                        if sign == DONE.encode():
                            del self._heard[rank]
                self._ended.wait(self._every)

    def _watch(self) -> None:
        """Look for silence; not in the thread that talks, which waits for ever for a host that is cut off.

        Who was itself stopped, or starved on a machine without memory, has heard nothing and blames nobody.
        """
        glance = min(self._every, 1.0)
        looked = awake = time.monotonic()
        while not self._ended.wait(glance):
            now = time.monotonic()
            if now - looked > 2 * glance + self._patience / 10:
                awake = now
            looked = now
            for rank, heard in list(self._heard.items()):
                if now - max(heard, awake) > self._patience:
                    self._lost(
                        f"{self._names[rank]} has not been heard of for {self._patience:.0f} seconds: its host is cut "
                        "off, or the process hangs; the run ends here and goes on from the newest checkpoint"
                    )
                    return
