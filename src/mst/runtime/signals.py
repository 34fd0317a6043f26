"""Stopping on a signal, but at a moment that the program chooses."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

SIGNALS = tuple(
    signal.Signals[f"SIG{name}"]
    for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU", "ALRM")
    if hasattr(signal, f"SIG{name}")
)
"""Signals by which terminals, schedulers and people end a program, those whose default ends it silently included."""


class GracefulStop:
    """Inside the block, the first of `SIGNALS` is only noted; a SIGINT after it raises KeyboardInterrupt.

    A signal that was ignored when the block began (`nohup`) is still ignored. Handlers can only be set in the main
    thread; in another thread the block does nothing. Child processes forked inside ignore SIGINT, because their parent
    decides, and are ended by the others.

    Attributes:
        signum: the signal that was noted, or None.
    """

    def __init__(self, notice: str | None) -> None:
        """Write `notice` to stderr when a signal is noted; None = write nothing."""
        self.signum: int | None = None
        self._notice = notice
        self._owner = os.getpid()
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
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
            if signum != signal.SIGINT:
                os._exit(128 + signum)
            return
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is None:
            self.signum = signum
            if self._notice is not None:
                _tell(f"\n{signal.Signals(signum).name}: {self._notice}\n")


class Signalled(BaseException):
    """A signal ends a command that has nothing to save; no `Exception`, so that `except Exception` lets it pass."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, in the main thread, all of `SIGNALS` but SIGINT raise `Signalled`, so that open things are cleaned up.

    Child processes forked inside are ended by these signals.
    """
    owner, before = os.getpid(), {}

    def end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(128 + signum)
        raise Signalled(signum)

    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signum != signal.SIGINT and signal.getsignal(signum) == signal.SIG_DFL:
                before[signum] = signal.signal(signum, end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def default_signals() -> None:
    """Restore the default, by which `SIGNALS` end this process: for the child of a parent that handles them."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _tell(text: str) -> None:
    """Write to stderr's file, past its buffer, since the console may be in the middle of a line; ignore failures."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), text.encode())  # type: ignore[union-attr]
