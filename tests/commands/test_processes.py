"""Commands in several processes: one result, one voice, one line for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parallel.processes import TESTS, environments

pytestmark = pytest.mark.slow  # processes that import torch


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def mst(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    own = os.environ if environment is None else environment
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mst", *words], env={**own, **paths}, capture_output=True, text=True, timeout=240
    )


def debug(images: Path, out: Path, *words: str) -> list[str]:
    return [
        *("pretrain", "debug", "--data.train", str(images), "--out", str(out), "--train.batch-size", "6"),
        *("--train.epochs", "2", "--runtime.workers", "0", "--monitor.every-steps", "1", *words),
    ]


def test_two_processes_of_a_command(images: Path, tmp_path: Path) -> None:
    done = mst(*debug(images, tmp_path / "run", "--runtime.processes", "2", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 8  # said once
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert rows[-1]["processes"] == 2
    assert rows[-1]["slowest_rank"] in {0, 1}
    assert (tmp_path / "run/logs/rank_1.log").read_text()
    again = mst(*debug(images, tmp_path / "run", "--runtime.processes", "2", "--continue"))
    assert again.returncode == 0, again.stderr


def test_features_of_three_processes_are_those_of_one(images: Path, tmp_path: Path) -> None:
    assert mst(*debug(images, tmp_path / "run")).returncode == 0
    words = ("--backbone", str(tmp_path / "run"), "--data", str(images), "--forward-batch", "3", "--precision", "fp32")
    for count in ("1", "3"):
        out = str(tmp_path / count)
        for task in ("knn", "linear"):
            done = mst("evaluate", task, *words, "--out", out, "--processes", count)
            assert done.returncode == 0, done.stderr
        done = mst("embed", *words, "--out", f"{out}.npz", "--processes", count)
        assert done.returncode == 0, done.stderr
    one, three = ((tmp_path / count / "results.jsonl").read_text().splitlines() for count in ("1", "3"))
    assert [json.loads(row)["metrics"] for row in one] == [json.loads(row)["metrics"] for row in three]
    assert len(three) == 2
    with np.load(tmp_path / "1.npz") as alone, np.load(tmp_path / "3.npz") as several:
        assert np.array_equal(alone["features"], several["features"])
        assert np.array_equal(alone["paths"], several["paths"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.batch-size", "2", "--runtime.processes", "3"], "--train.batch-size 2 is too small for"),
        (["--runtime.processes", "3", "--runtime.lanes", "4"], "--runtime.lanes 4 on 3 processes"),
        (["--runtime.processes", "2", "--runtime.replicas", "2"], "--runtime.replicas 2 on 2 processes"),
        (["--runtime.processes", "0"], "--runtime.processes 0"),
        (["--runtime.processes", "2", "--data.train", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(images: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = mst(*debug(images, tmp_path / "run"), *words)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("mst:")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/config.json").exists()


def test_other_settings_in_one_process_are_refused(images: Path, tmp_path: Path) -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), *sys.path])}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "mst", *debug(images, tmp_path / "run", "--runtime.seed", environment["RANK"])],
            env={**environment, **paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert "rank 1 on" in said[0]
    assert "has other settings than rank 0" in said[0]
    assert said[1] == ""
    assert not (tmp_path / "run").exists()


def test_other_commands_run_in_one_process(images: Path) -> None:
    done = mst("inspect", str(images), environment=environments(2)[0])
    assert done.returncode == 2
    assert "mst inspect runs in one process" in done.stderr
