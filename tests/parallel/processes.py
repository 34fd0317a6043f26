"""Starts a function of a test module in several processes that joined one another, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
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
    ends = time.monotonic() + timeout
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(size)]
        workers = [
            subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=log, stderr=log)
            for environment, log in zip(environments(size), logs, strict=True)
        ]
        try:
            for worker in workers:
                worker.wait(max(1.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        for worker in workers:
            worker.kill()
            worker.wait()
        for log in logs:
            log.seek(0)
        said = "\n".join(f"rank {rank}: {log.read()[-3000:]}" for rank, log in enumerate(logs))
    assert [worker.returncode for worker in workers] == [0] * size, said
