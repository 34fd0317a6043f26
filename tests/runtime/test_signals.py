"""Signals are noted in the main thread, passed over in others, and never kept from child processes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mst.runtime.signals import GracefulStop


def test_first_is_noted_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with GracefulStop("wait") as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capfd.readouterr().err == "\nSIGTERM: wait\n"


def test_other_threads_leave_handlers_alone() -> None:
    found = []

    def work() -> None:
        with GracefulStop("wait"):
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
