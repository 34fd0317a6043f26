"""Ending the process although one of its threads hangs in a read that never returns (a dead network mount)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_hanging = False


def leave_behind() -> None:
    """Note that a thread hangs for good: at a normal exit the interpreter would wait for it."""
    global _hanging  # noqa: PLW0603  (it is the process's)
    _hanging = True


def end_process(status: int) -> None:
    """End the process at once if a thread was left behind, else do nothing."""
    if not _hanging:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
