"""Waiting in tests for what happens in other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

WITHIN = 240.0
"""Seconds in which what a test waits for must happen, on a machine that others use as well."""


def wait_for(done: Callable[[], bool], story: Callable[[], str] = str, within: float = WITHIN) -> None:
    """Wait until `done()`, at most `within` seconds; `story()` tells what went wrong."""
    end = time.monotonic() + within
    while not done():
        assert time.monotonic() < end, story()
        time.sleep(0.05)
