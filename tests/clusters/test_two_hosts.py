"""Two hosts with addresses of their own, torchrun on both: one is cut off in mid-run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from clusters import hosts
from clusters.tiny import ENVIRONMENT, outcome, pretrain, processes, steps_done, wait_for_step, write_recipe
from clusters.waiting import wait_for
from mst.parallel.heartbeat import PATIENCE

reason = hosts.missing()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.skipif(bool(reason), reason=str(reason))]
STEPS = 300
A, B = hosts.ADDRESSES
END_WITHIN = PATIENCE + 60
"""Seconds from the cut to the end of the run: until the silence is noticed, and until torchrun has given up."""


@pytest.fixture(autouse=True)
def _two_hosts() -> Iterator[None]:
    with hosts.two_hosts():
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("input"), steps=STEPS)


@contextmanager
def running(recipe: Path, folder: Path, nodes: str, restarts: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run one process on each host inside the block; the logs are A and B in the folder."""
    agents = []
    for name in (A, B):
        words = [f"--nnodes={nodes}", "--nproc-per-node=1", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
        words += [f"--rdzv-endpoint={hosts.ADDRESSES[A]}:29511", "--rdzv-id=test"]
        words += [f"--local-addr={hosts.ADDRESSES[name]}", *pretrain(recipe, folder / "run")]
        environment = {**ENVIRONMENT, "MST_TEST_MARK": str(folder)}
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        agents.append(hosts.on_host(name, *command, log=folder / name, environment=environment))
    try:
        yield agents
    finally:
        for pid in (*(agent.pid for agent in agents), *processes(str(folder))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for agent in agents:
            agent.wait()


def ranks(folder: Path) -> list[str]:
    """Return the ranks that are still there. (The agent of the host that was cut off waits for TCP to give up.)"""
    return [rank for rank in processes(str(folder)).values() if rank]


def logs(folder: Path) -> str:
    return "\n".join(f"--- {name}\n{(folder / name).read_text()}" for name in (A, B))


def test_a_host_that_is_cut_off_ends_the_run_by_name(recipe: Path, tmp_path: Path) -> None:
    with running(recipe, tmp_path, "2", 0) as agents:
        wait_for_step(tmp_path / "run", 30, agents[0], tmp_path / A)
        hosts.cut()
        since = time.monotonic()
        assert agents[0].wait(END_WITHIN) != 0
        wait_for(lambda: ranks(tmp_path) == [], lambda: logs(tmp_path), within=END_WITHIN)
        print(f"the run had ended {time.monotonic() - since:.0f} s after the cut")
    assert f"rank 1 on {B} has not been heard of for" in (tmp_path / A).read_text(), logs(tmp_path)
    assert f"rank 0 on {A} has not been heard of for" in (tmp_path / B).read_text(), logs(tmp_path)
    assert steps_done(tmp_path / "run") < STEPS


def test_the_other_host_goes_on_alone(recipe: Path, tmp_path: Path) -> None:
    """Which of two agents becomes rank 0 is torchrun's choice; A holds the rendezvous, so A goes on."""
    with running(recipe, tmp_path, "1:2", 3) as agents:
        wait_for_step(tmp_path / "run", 30, agents[0], tmp_path / A)
        hosts.cut()
        since, at = time.monotonic(), steps_done(tmp_path / "run")
        wait_for(lambda: steps_done(tmp_path / "run") > at + 1, lambda: logs(tmp_path), within=2 * END_WITHIN)
        print(f"the next step came {time.monotonic() - since:.0f} s after the cut")
        assert agents[0].wait(300) == 0, logs(tmp_path)
        wait_for(lambda: ranks(tmp_path) == [], lambda: logs(tmp_path), within=END_WITHIN)
    _, _, rows = outcome(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
