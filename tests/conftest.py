"""Settings of every test run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import mst  # noqa: F401  (first: sets how torch's compute threads wait)

# Shells start what runs in their background with SIGINT and SIGQUIT ignored, and what is ignored stays so
# (mst.runtime.signals): the tests and the processes they start get them as a terminal gives them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# On a server the same examples every time: a new counterexample is found, and mended, by a person at a desk.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a thread that a test left behind: the next command called inside this process would end it."""
    monkeypatch.setattr("mst.runtime.leaving._left", False)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Give back the compute threads that a test took: sums of another number of threads have other last bits."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
