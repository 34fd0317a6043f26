"""Processes of a run under torchrun on one host: killed, signalled; they go on to the same weights, or end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from clusters.tiny import outcome, pretrain, processes, rank_of, steps_done, torchrun, wait_for_step, write_recipe
from clusters.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, BACK_WITHIN = 300, 30.0
TWO = ("--standalone", "--nproc-per-node=2", "--max-restarts=3")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("input"), steps=STEPS)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with torchrun(*TWO, *pretrain(recipe, folder / "run"), log=folder / "log", mark=str(folder)) as agent:
        assert agent.wait(300) == 0, (folder / "log").read_text()
    assert steps_done(folder / "run") == STEPS
    assert processes(str(folder)) == {}
    return folder / "run"


def test_a_rank_that_is_killed_comes_back(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run, log, mark = tmp_path / "run", tmp_path / "log", str(tmp_path)
    words = (*TWO, *pretrain(recipe, run), "--runtime.workers", "2")  # which may not outlive the rank
    began = time.monotonic()
    with torchrun(*words, log=log, mark=mark) as agent:
        wait_for_step(run, 1, agent, log)
        first = time.monotonic() - began  # on a machine that others use as well, starting takes most of the time
        for rank, step in ((1, STEPS // 3), (0, 2 * STEPS // 3)):
            wait_for_step(run, step, agent, log)
            victim = rank_of(mark, rank)
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            at = steps_done(run)
            wait_for_step(run, at + 1, agent, log)
            seconds = time.monotonic() - killed
            print(f"rank {rank} killed at step {at}: the next after {seconds:.1f} s, the first of all {first:.1f} s")
            assert seconds < max(BACK_WITHIN, 1.5 * first)
        assert agent.wait(300) == 0, log.read_text()
        assert processes(mark) == {}
    assert outcome(run) == outcome(whole)


def to_agent(agent: int, mark: str) -> None:
    os.kill(agent, signal.SIGTERM)


def to_one(agent: int, mark: str) -> None:
    os.kill(rank_of(mark, 1), signal.SIGTERM)


def to_all_with_delay(agent: int, mark: str) -> None:
    for rank in [rank_of(mark, 1), rank_of(mark, 0)]:
        with suppress(ProcessLookupError):  # it may have heard of it, and have ended
            os.kill(rank, signal.SIGTERM)
        time.sleep(0.1)


@pytest.mark.parametrize("send", [to_agent, to_one, to_all_with_delay])
def test_a_signal_stops_all_at_one_step(
    send: Callable[[int, str], None], recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run, log, mark = tmp_path / "run", tmp_path / "log", str(tmp_path)
    words = ("--standalone", "--nproc-per-node=2", "--max-restarts=0", *pretrain(recipe, run))
    with torchrun(*words, log=log, mark=mark) as agent:
        wait_for_step(run, STEPS // 2, agent, log)
        send(agent.pid, mark)
        assert agent.wait(60) != 0
        wait_for(lambda: processes(mark) == {}, lambda: f"{processes(mark)}: {log.read_text()}", within=10)
    said = log.read_text()
    stopped = steps_done(run)
    assert f"stopped at step {stopped} of {STEPS}" in said, said
    assert (run / "checkpoints" / f"step_{stopped}").is_dir(), said
    with torchrun(*words, log=log, mark=mark) as agent:
        assert agent.wait(300) == 0, log.read_text()
    assert outcome(run) == outcome(whole)
