"""A real process that is killed without warning, again and again, ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mst.runtime.storage.results import read_jsonl

TIMES = {
    *("seconds", "images_per_second", "data_wait", "memory_gb"),
    *("data_wait_most", "wait_for_others_least", "wait_for_others_most", "slowest_rank"),  # of several processes
}
STEPS = 60
SETTINGS = {
    "views": {"global_size": 16, "local_size": 8, "local_crops": 2},
    "model": {
        "backbone": "deit_tiny_patch16_224",
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "prototypes": 32,
        "head_hidden": 32,
        "head_bottleneck": 8,
        "head_norm": "batch",
    },
    "train": {"batch_size": 8, "epochs": STEPS / 5, "accumulate": 2},
    "checkpoint": {"every_steps": 7},
    "monitor": {"every_steps": 1},
    "runtime": {"threads": 1, "workers": 0, "device": "cpu", "seed": 3},
}


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mst", "pretrain", *map(str, words)], env=environment, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()
    return stderr.decode()


def steps_done(run: Path) -> int:
    """The last row on the disk, whole or not yet."""
    return max((row["step"] for row in read_jsonl(run / "metrics.jsonl")), default=0)


def kill_at(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """SIGKILL once the run has written the row of `step`."""
    deadline = time.monotonic() + 240
    while steps_done(run) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it had ended already: {process.returncode}"


def outcome(run: Path) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(run / "metrics.jsonl")]
    return (run / "backbone.safetensors").read_bytes(), json.loads((run / "backbone.json").read_text()), rows


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    draws = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(40):
        Image.fromarray(draws.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"images/{number}.png")
    path = folder / "tiny.json"
    path.write_text(json.dumps({**SETTINGS, "data": {"train": [str(folder / "images")]}}))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(recipe, "--out", run))
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    return run


def resumed_after_kills(run: Path, process: subprocess.Popen[bytes], steps: list[int]) -> subprocess.Popen[bytes]:
    """Kill at each of the steps (or at the first new row, where a resumed run is beyond it), resume each time."""
    for step in steps:
        kill_at(process, run, max(step, steps_done(run) + 1))
        process = start("--resume", run)
    return process


def test_killed_terminated_and_resumed(recipe: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = resumed_after_kills(run, start(recipe, "--out", run), [random.randrange(1, STEPS // 2)])
    while steps_done(run) < STEPS // 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, stderr.decode()
    assert f"mst pretrain --resume {run}" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    finish(start("--resume", run))
    assert outcome(run) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_many_times(recipe: Path, whole: Path, tmp_path: Path, seed: int) -> None:
    steps = sorted(random.Random(seed).sample(range(1, STEPS - 4), 5))
    run = tmp_path / "run"
    finish(resumed_after_kills(run, start(recipe, "--out", run), steps))
    assert outcome(run) == outcome(whole)
