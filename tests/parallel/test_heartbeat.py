"""Signs of life: silence is noticed and named, a good end is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
import torch.distributed as dist

from mst.parallel.heartbeat import TRY_AGAIN, Heartbeat

NAMES = [f"rank {rank} on host{rank}" for rank in range(3)]
EVERY, PATIENCE = 0.05, 2.0


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin(server: dist.TCPStore, rank: int, said: list[str], stack: ExitStack) -> Heartbeat:
    beat = Heartbeat(
        lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20)),
        NAMES,
        rank,
        every=EVERY,
        patience=PATIENCE,
        lost=said.append,
    )
    stack.callback(beat.close)
    return beat


def test_a_rank_that_never_speaks_is_named_by_the_first(server: dist.TCPStore, stack: ExitStack) -> None:
    said: list[list[str]] = [[], []]
    for rank in (0, 1):
        begin(server, rank, said[rank], stack)
    time.sleep(2 * PATIENCE)
    assert said[1] == []
    assert len(said[0]) == 1
    assert said[0][0].startswith(f"rank 2 on host2 has not been heard of for {PATIENCE:.0f} seconds")


def test_the_others_name_the_first(server: dist.TCPStore, stack: ExitStack) -> None:
    said: list[str] = []
    begin(server, 2, said, stack)
    time.sleep(2 * PATIENCE)
    assert [line.partition(" has")[0] for line in said] == ["rank 0 on host0"]


def test_a_good_end_is_no_loss(server: dist.TCPStore, stack: ExitStack) -> None:
    said: list[list[str]] = [[], [], []]
    beats = [begin(server, rank, said[rank], stack) for rank in range(3)]
    time.sleep(0.3)
    for beat in beats[:2]:
        beat.close()
    time.sleep(2 * PATIENCE)
    assert said == [[], [], []]


def test_a_store_that_is_gone_is_silence() -> None:
    """The process that holds it is frozen, as on a host that is cut off."""
    code = (
        "import torch.distributed as d, time; s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False);"
        "print(s.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        said: list[str] = []
        connect = lambda: dist.TCPStore("127.0.0.1", port, is_master=False)  # noqa: E731
        beat = Heartbeat(connect, NAMES, 1, every=EVERY, patience=PATIENCE, lost=said.append)
        connect().set("beat/0", "1")
        subprocess.run(["kill", "-STOP", str(holder.pid)], check=True)
        time.sleep(2 * PATIENCE)
        holder.kill()
        beat.close()
    assert [line.partition(" has")[0] for line in said] == ["rank 0 on host0"]


def test_silence_ends_the_process_at_once() -> None:
    code = (
        "import time, torch.distributed as d; from mst.parallel.heartbeat import Heartbeat;"
        "s = d.HashStore(); Heartbeat(lambda: s, ['rank 0 on a', 'rank 1 on b'], 0, every=0.05, patience=0.3);"
        "time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == TRY_AGAIN
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("mst: error: rank 1 on b has not been heard of for 0 seconds")


def test_who_was_stopped_itself_blames_nobody(server: dist.TCPStore) -> None:
    code = (
        "import sys, time, torch.distributed as d; from mst.parallel.heartbeat import Heartbeat;"
        f"connect = lambda: d.TCPStore('127.0.0.1', {server.port}, is_master=False);"
        "connect().set('ready', '1');"
        "Heartbeat(connect, ['rank 0 on a', 'rank 1 on b'], 1, every=0.05, patience=2.0); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as listener:
        server.get("ready")
        for count in range(120):
            server.set("beat/0", str(count))
            if count in {20, 80}:
                listener.send_signal(signal.SIGSTOP if count == 20 else signal.SIGCONT)
            time.sleep(0.05)
        assert listener.poll() is None
        listener.kill()


def test_a_process_ends_well_while_the_store_is_waited_for() -> None:
    """Python aborts one whose thread comes back from the store while it ends; `Slow` lets it come back then."""
    code = (
        "import sys, time, datetime, torch.distributed as d; from mst.parallel.heartbeat import Heartbeat\n"
        "class Slow:\n    def __del__(self): time.sleep(1.5)\n"
        "connect = lambda: d.HashStore().wait(['never there'], datetime.timedelta(seconds=1))\n"
        "sys.modules['slow'] = Slow()\n"
        "Heartbeat(connect, ['rank 0 on a', 'rank 1 on b'], 0, every=0.05, patience=20, lost=str).close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
