"""A repair in two processes, whole or divided networks: SIGKILL on the way back, and the same bytes after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.calls import image_folder
from commands.test_kill_resume import TIMES
from mst.runtime.storage.results import read_jsonl
from parallel.processes import TESTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS = 12
KILLER = """
import importlib, os, signal
moment, rank = os.environ.get("KILL_AT", ""), os.environ.get("KILL_RANK")
if moment and os.environ.get("RANK") == rank:
    module, place, when = moment.split(":")
    owner = importlib.import_module(module)
    *classes, name = place.split(".")
    for each in classes:
        owner = getattr(owner, each)
    act = getattr(owner, name)
    def killed(*words, **more):
        if when == "after":
            act(*words, **more)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, killed)
"""
MOMENTS = {
    "found, nothing done": ("mst.engine.saving:target_step:before", 0),
    "rows kept": ("mst.engine.saving:keep_abandoned:after", 0),
    "noted": ("mst.train.pretraining:write_repairs:after", 0),
    "checkpoints discarded": ("mst.checkpoint.store:CheckpointStore.discard:after", 0),
    "the other one, while it takes up": ("mst.train.state:TrainState.load:before", 1),
}
SHARDING = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    settings = {
        "recipe": "debug",
        "data": {"train": [str(image_folder(folder / "images", 24))]},
        "objective": {"strategy": "random", "eligible_fraction": 1.0, "mask_probability": 1.0},
        "train": {"batch_size": 6, "epochs": STEPS / 4},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "monitor": {"every_steps": 1, "dynamics": "repair", "tensorboard": False},
        "runtime": {"workers": 0, "threads": 1, "device": "cpu", "precision": "fp32"},
    }
    path = folder / "masked.json"
    path.write_text(json.dumps(settings))
    return path


def mst(*words: object, killed: tuple[str, int] | None = None, hook: Path | None = None) -> int:
    """Run `mst pretrain WORDS` in two processes; return the exit status, which is not 0 if it was killed."""
    paths = [str(TESTS.parent / "src"), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if killed is not None and hook is not None:
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(KILLER)
        paths = [str(hook), *paths]
        environment |= {"KILL_AT": killed[0], "KILL_RANK": str(killed[1])}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "mst", "pretrain", *map(str, words), "--runtime.processes", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    if killed is None:
        assert done.returncode == 0, done.stderr[-3000:]
    else:  # the one that is left says so, or who started both does
        told = signal.Signals.SIGKILL.name in done.stderr or "another process of this run is gone" in done.stderr
        assert told, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
    return done.returncode


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run leaves, but for its times."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name.startswith("logs") or path.is_dir():
            continue
        if path.suffix == ".jsonl":
            found[name] = [{key: row[key] for key in row.keys() - TIMES} for row in read_jsonl(path)]
        elif path.name in {"environment.json", "info.json", "progress.pt", "run.lock"}:  # of this sitting, or of times
            found[name] = True
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = {}
    for sharding in SHARDING:
        runs[sharding] = tmp_path_factory.mktemp("whole") / sharding
        mst(recipe, "--out", runs[sharding], "--runtime.sharding", sharding)
    return runs


@pytest.mark.parametrize("sharding", SHARDING)
def test_both_processes_go_back(whole: dict[str, Path], sharding: str) -> None:
    run = whole[sharding]
    [repair] = read_jsonl(run / "repairs.jsonl")
    assert (repair["kind"], repair["found"], repair["back"]) == ("over-masked", 2, 0)
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["repairs"] == 1 and row["masked_share"] < 0.6 and row["processes"] == 2 for row in rows)
    left = read_jsonl(run / "abandoned/repair_1/metrics.jsonl")
    assert [(row["step"], row["masked_share"]) for row in left if "loss" in row] == [(1, 1.0), (2, 1.0)]
    assert max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")) == STEPS


@pytest.mark.parametrize("sharding", SHARDING)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_on_the_way_back(
    recipe: Path, whole: dict[str, Path], tmp_path: Path, sharding: str, moment: str
) -> None:
    run = tmp_path / "run"
    words = ("--runtime.sharding", sharding)
    assert mst(recipe, "--out", run, *words, killed=MOMENTS[moment], hook=tmp_path / "hook") != 0
    mst("--resume", run, *words)
    assert outcome(run) == outcome(whole[sharding])
