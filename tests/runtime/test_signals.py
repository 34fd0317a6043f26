"""Signals are noted in the main thread, passed over in others, and never kept from child processes."""

from __future__ import annotations

import io
import os
import signal
import sys
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


def test_a_process_that_does_not_speak_notes_the_signal_only(capfd: pytest.CaptureFixture[str]) -> None:
    with GracefulStop(None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    assert capfd.readouterr().err == ""


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


def test_every_signal_that_ends_programs_is_noted_and_nohup_is_kept() -> None:
    for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGXCPU, signal.SIGALRM):
        with GracefulStop("wait") as stop:
            os.kill(os.getpid(), signum)
            assert stop.signum == signum
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop("wait") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_notice_to_nobody_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "__stderr__", stream)
        with GracefulStop("wait") as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
