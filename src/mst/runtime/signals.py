"""Stopping on SIGINT and SIGTERM at a moment of the program's own choosing."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Inside the block, the first SIGINT or SIGTERM is only noted; a later SIGINT raises KeyboardInterrupt at once.

    Handlers can be set in the main thread only: in another thread the block changes nothing. Child processes that
    are forked inside ignore SIGINT (their parent decides) and die of SIGTERM.

    Attributes:
        signum: the signal that was noted, or None.
    """

    def __init__(self, notice: str) -> None:
        """Write `notice` to stderr when a signal is noted."""
        self.signum: int | None = None
        self._notice = notice
        self._owner = os.getpid()
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def within(self, seconds: float) -> bool:
        """Wait until a signal is noted, at most `seconds`; return whether one was."""
        end = time.monotonic() + seconds
        while self.signum is None and time.monotonic() < end:
            time.sleep(0.01)
        return self.signum is not None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: {self._notice}\n".encode())  # the console may be in the middle of a line: not it
