"""Stopping on a signal at a moment of the program's own choosing."""

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
"""What terminals, schedulers and people send to end a program; those that ended it without a word before too."""


class GracefulStop:
    """Inside the block, the first of `SIGNALS` is only noted; a later SIGINT raises KeyboardInterrupt at once.

    A signal that was ignored when the block began (`nohup`) stays so. Handlers can be set in the main thread only: in
    another thread the block changes nothing. Child processes that are forked inside ignore SIGINT (their parent
    decides) and die of the others.

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
            _tell(f"\n{signal.Signals(signum).name}: {self._notice}\n")


class Signalled(BaseException):
    """A signal ends a command that has nothing to save; not an `Exception`, so that no handler keeps it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, in the main thread, `SIGNALS` but SIGINT raise `Signalled`: what is open is closed and cleaned up.

    Child processes that are forked inside die of them.
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
    """Let `SIGNALS` end this process, for a child whose parent handles them otherwise."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _tell(text: str) -> None:
    """Write to stderr past its buffer (the console may be in the middle of a line), if anybody is there to read."""
    with suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), text.encode())  # type: ignore[union-attr]
