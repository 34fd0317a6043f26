"""`mst submit slurm` on a real SLURM: a job that is stopped, preempted or killed goes on by itself to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters import slurm
from clusters.slurm import Slurm
from clusters.tiny import ENVIRONMENT, outcome, processes, rank_of, steps_done, wait_for_step, write_recipe
from clusters.waiting import wait_for
from commands.calls import labelled_folder
from commands.test_finetune import VIT, saved

reason = slurm.missing()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.skipif(bool(reason), reason=str(reason))]
STEPS = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm.started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("input"), steps=STEPS)


def submit(recipe: Path, run: Path, *words: str | Path) -> str:
    """Submit a pre-training of two processes on two nodes; return the number of its job."""
    return submit_words(run, recipe, *words)


def submit_words(run: Path, *words: str | Path) -> str:
    """Submit any command with two processes on two nodes; return the number of its job."""
    command = [sys.executable, "-m", "mst", "submit", "slurm", *map(str, words), "--out", str(run), "--nodes", "2"]
    mark = {"MST_TEST_MARK": str(run)}
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT, **mark}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.rsplit("job ", 1)[1].split(":")[0]


def log_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.slurm.log")


@pytest.fixture(scope="module")
def whole(cluster: Slurm, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "it's a run"
    job = submit(recipe, run, "--time", "30")
    cluster.wait(job, "COMPLETED", "FAILED", log=log_of(run))
    assert cluster.exit_code(job) == "0:0", log_of(run).read_text()
    assert steps_done(run) == STEPS
    assert (run / "logs" / "rank_1.log").exists()  # there were two
    return run


def usr1(cluster: Slurm, job: str, run: Path) -> None:
    """What the time limit brings."""
    cluster.ask("scancel", "--signal=USR1", job)


def term(cluster: Slurm, job: str, run: Path) -> None:
    cluster.ask("scancel", "--signal=TERM", job)


def preempt(cluster: Slurm, job: str, run: Path) -> None:
    urgent = cluster.ask(
        "sbatch", "--parsable", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    cluster.wait(urgent, "COMPLETED")


def kill_rank(cluster: Slurm, job: str, run: Path) -> None:
    os.kill(rank_of(str(run), 1), signal.SIGKILL)


@pytest.mark.parametrize("disturb", [usr1, term, preempt, kill_rank])
def test_goes_on_by_itself_to_the_same_end(
    disturb: Callable[[Slurm, str, Path], None], cluster: Slurm, recipe: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = submit(recipe, run)
    wait_for_step(run, STEPS // 3, log=log_of(run))
    disturb(cluster, job, run)
    cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", log=log_of(run))
    said = log_of(run).read_text()
    assert cluster.exit_code(job) == "0:0", said
    assert "Restarts=1 " in cluster.ask("scontrol", "--oneliner", "show", "job", job), said
    assert outcome(run) == outcome(whole)
    assert processes(str(run)) == {}
    stopped = f"stopped with status {138 if disturb is usr1 else 143}" in said
    assert stopped == (disturb in {usr1, term}), said


def test_scancel_ends_it_and_the_next_job_goes_on(cluster: Slurm, recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(recipe, run)
    wait_for_step(run, STEPS // 3, log=log_of(run))
    cluster.ask("scancel", job)
    wait_for(lambda: job not in cluster.ask("squeue", "--noheader", "--format=%i"))
    assert cluster.state(job) == "CANCELLED"
    assert f"step_{steps_done(run)}" in {path.name for path in (run / "checkpoints").iterdir()}
    again = submit(recipe, run)
    cluster.wait(again, "COMPLETED", "FAILED", log=log_of(run))
    assert cluster.exit_code(again) == "0:0", log_of(run).read_text()
    assert outcome(run) == outcome(whole)


def test_a_fine_tuning_goes_on_by_itself(cluster: Slurm, tmp_path: Path) -> None:
    data, backbone = labelled_folder(tmp_path / "data", val=("cat", "dog")), saved(tmp_path, VIT)
    words = ("finetune", "--backbone", backbone, "--data", data, "--batch-size", "4", "--epochs", "150")
    words += ("--device", "cpu", "--workers", "0", "--checkpoint-every", "10", "--evaluate-epochs", "5")
    jobs = {name: submit_words(tmp_path / name, *words) for name in ("whole", "run")}
    wait_for_step(tmp_path / "run", 50, log=log_of(tmp_path / "run"))
    cluster.ask("scancel", "--signal=USR1", jobs["run"])
    for name, job in jobs.items():
        cluster.wait(job, "COMPLETED", "FAILED", log=log_of(tmp_path / name))
        assert cluster.exit_code(job) == "0:0", log_of(tmp_path / name).read_text()
    assert "goes back into the queue" in log_of(tmp_path / "run").read_text()
    for file in ("classifier.safetensors", "backbone.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_an_error_ends_the_job(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(recipe, run, "--data.train", str(tmp_path / "nowhere"))
    cluster.wait(job, "COMPLETED", "FAILED", log=log_of(run))
    assert cluster.exit_code(job) == "2:0"
    assert log_of(run).read_text().count("mst: error: ") == 1, log_of(run).read_text()


def test_an_unknown_partition_is_one_line(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="mst: error: sbatch refused the job: invalid partition specified: q; "):
        submit(recipe, tmp_path / "run", "--partition", "q")
