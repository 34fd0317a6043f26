"""Starts a function of a test module in several processes that joined one another, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environments(size: int) -> list[dict[str, str]]:
    """Return what torchrun would set, for each of `size` processes on this host."""
    paths = os.pathsep.join([str(TESTS), *sys.path])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    common |= {"LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return [os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def start(words: Sequence[str], size: int) -> list[subprocess.Popen[str]]:
    """Start `python WORDS` in `size` processes that can find each other."""
    return [
        subprocess.Popen(
            [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for environment in environments(size)
    ]


def run_in_processes(function: str, size: int, *words: str, timeout: float = 300) -> None:
    """Call `module:function` with words in `size` joined processes, and wait for their good end.

    Raises:
        AssertionError: one failed; with what it wrote.
    """
    module, _, name = function.partition(":")
    code = (
        f"import sys\nfrom {module} import {name}\nfrom mst.parallel.launch import from_environment, joined\n"
        f"with joined(from_environment(), minutes=3):\n    {name}(*sys.argv[1:])\n"
    )
    workers = start(["-c", code, *words], size)
    try:
        for rank, worker in enumerate(workers):
            _, errors = worker.communicate(timeout=timeout)
            assert worker.returncode == 0, f"rank {rank}: {errors[-3000:]}"
    finally:
        for worker in workers:
            worker.kill()
