"""A run whose log nobody reads any more, or whose terminal is gone, trains on and saves when it is told to stop."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from commands.test_kill_resume import finish, outcome, recipe, start, steps_done, whole

__all__ = ["recipe", "whole"]  # fixtures
MST = [sys.executable, "-m", "mst"]
Popen = subprocess.Popen[Any]


def closed_reader(words: list[str]) -> Popen:
    """Start it as `mst ... 2>&1 | head -1` does."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def no_streams(words: list[str]) -> Popen:
    """Start it as `mst ... <&- >&- 2>&-` does."""
    return subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words])


def full_disk(words: list[str]) -> Popen:
    """Write its log to a full disk."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        return subprocess.Popen(words, stdout=full, stderr=full)


def lost_terminal(words: list[str]) -> Popen:
    """Start it on a terminal that is closed a moment later, by which the system sends SIGHUP."""
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    os.read(master, 1)
    os.close(master)
    return process


@pytest.mark.parametrize(
    ("begin", "signum"),
    [
        (closed_reader, signal.SIGINT),
        pytest.param(no_streams, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(full_disk, signal.SIGUSR1, marks=pytest.mark.slow),
        (lost_terminal, signal.SIGHUP),
    ],
)
def test_a_dead_log_ends_no_run(
    begin: Callable[[list[str]], Popen], signum: signal.Signals, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = begin([*MST, "pretrain", str(recipe), "--out", str(run)])
    deadline = time.monotonic() + 120
    while steps_done(run) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signum)
    assert process.wait(timeout=60) == 128 + signum
    assert any((run / "checkpoints").glob("step_*"))
    assert not (run / "run.lock").exists()
    finish(start("--resume", run))
    assert outcome(run) == outcome(whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_without_checkpoints_ends_in_one_line(signum: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys, time, mst.cli\n"
        "mst.cli._dispatch = lambda _: (print('begun', flush=True), time.sleep(60))\n"
        "sys.exit(mst.cli.main(['embed']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signum)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert err == f"mst: stopped by {signum.name}\n"


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(streams: str) -> None:
    code = "import sys, mst.cli; sys.exit(mst.cli.main(['recipes', 'debug']))"
    done = subprocess.run(["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", code], timeout=60)
    assert done.returncode == 0


def test_a_full_disk_under_a_table_is_said(tmp_path: Path) -> None:
    code = "import sys, mst.cli; sys.exit(mst.cli.main(['recipes', 'debug']))"
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "mst: error: cannot read or write: No space left on device; free space\n"


def shared_memory(size: str, words: list[str], **streams: IO[bytes] | int) -> Popen:
    """Start it with a /dev/shm of its own, as containers have."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return subprocess.Popen(["unshare", "-m", "sh", "-c", script, "sh", *words], **streams)  # type: ignore[call-overload]


def may_mount() -> bool:
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True)
    return done.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount (root)")
@pytest.mark.parametrize(("size", "words"), [("64k", "come through pipes"), ("4k", "no loader processes")])
def test_small_shared_memory_costs_one_warning(
    size: str, words: str, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    command = [*MST, "pretrain", str(recipe), "--out", str(tmp_path / "run"), "--runtime.workers", "2"]
    process = shared_memory(size, command, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert err.count(b"warning: ") - err.count(b"warning: dynamics") == 1, err.decode()
    assert words.encode() in b" ".join(err.split())
    assert outcome(tmp_path / "run") == outcome(whole)
