"""Networks divided over processes (FSDP2) learn what whole ones learn, and are saved and loaded like them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commands.calls import image_folder
from mst.checkpoint.format import read_folder
from mst.parallel.world import World
from parallel.processes import run_in_processes
from parallel.test_data_parallel import CASES, relative, trained

STEPS = 12
NAMES = ("random, half, accumulate 2", "none, drop path", "BatchNorm", "Swin")
"""With two processes; the first one with more, too."""


def sharded(case: str) -> dict[str, dict[str, object]]:
    return {**CASES[case], "runtime": {"sharding": "fsdp2"}}


def whole(outcome: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in outcome.items()}


def cases(size: int) -> tuple[str, ...]:
    return NAMES if size == 2 else NAMES[:1]


def train_all(folder: str, hosts: str) -> None:
    """Train every case with networks divided over processes; the first process writes what came out."""
    world = World.current()
    world.local_size = world.size // int(hosts)
    for number, case in enumerate(cases(world.size)):
        outcome = trained(sharded(case), steps=STEPS)
        parts = [value for name, value in outcome.items() if hasattr(value, "to_local")]
        assert len(parts) > 50, case
        held = sum(part.to_local().numel() for part in parts)
        assert held < 1.2 * sum(part.numel() for part in parts) / world.local_size, case
        outcome = whole(outcome)
        digests = world.collect({name: value.double().nansum().item() for name, value in outcome.items()})
        differ = [name for name in outcome for digest in digests if digest[name] != digests[0][name]]
        assert not differ, (case, differ)
        if world.first:
            torch.save(outcome, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    """Return what one process learns."""
    return {case: trained(CASES[case], steps=STEPS) for case in NAMES}


@pytest.mark.parametrize(("size", "hosts"), [(2, 1), (3, 1), (4, 2)])
def test_parts_learn_what_the_whole_learns(
    alone: dict[str, dict[str, Tensor]], tmp_path: Path, size: int, hosts: int
) -> None:
    run_in_processes("parallel.test_sharded:train_all", size, str(tmp_path), str(hosts))
    for number, case in enumerate(cases(size)):
        found, expected = torch.load(tmp_path / f"{number}.pt"), alone[case]
        assert found.keys() == expected.keys()
        # Biases before BatchNorm have rounding for a gradient, which Adam makes as large as any; DDP differs as much.
        assert relative(expected, found) < (5e-5 if case == "BatchNorm" else 1e-5), case
        torch.testing.assert_close(found["center"], expected["center"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["history"], expected["history"], rtol=1e-3, atol=1e-4, equal_nan=True)


def mst(*words: object) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mst", *map(str, words)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]


def processes(count: int) -> tuple[object, ...]:
    return ("--runtime.processes", count, "--runtime.sharding", "fsdp2" if count > 1 else "ddp")


def assert_same(run: Path, other: Path, step: int) -> None:
    """Compare two checkpoints up to the rounding of sums."""
    one, two = (read_folder(folder / "checkpoints" / f"step_{step}").parts for folder in (run, other))
    for part in ("student", "teacher", "decoder"):
        torch.testing.assert_close(two[part], one[part], rtol=1e-3, atol=2e-5)
    assert two["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]
    assert two["optimizer"]["state"].keys() == one["optimizer"]["state"].keys()
    for key, state in one["optimizer"]["state"].items():
        torch.testing.assert_close(two["optimizer"]["state"][key], state, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    words = ("debug", "--data.train", image_folder(tmp_path / "set", 48), "--train.batch-size", 16, "--train.epochs", 2)
    quick = (
        "--runtime.workers",
        0,
        "--runtime.precision",
        "fp32",
        "--model.depth",
        2,
        "--monitor.tensorboard",
        "false",
    )
    every = ("--checkpoint.every-steps", 4, "--checkpoint.keep", 5)
    runs = {count: tmp_path / f"run{count}" for count in (1, 2)}
    for count, run in runs.items():
        mst("pretrain", *words, *quick, *every, "--out", run, *processes(count))
        assert (run / "backbone.safetensors").is_file()
    assert_same(runs[1], runs[2], 4)
    assert_same(runs[1], runs[2], 6)
    for first, then in ((2, 1), (2, 3), (1, 2)):
        again = tmp_path / f"from{first}with{then}"
        shutil.copytree(runs[first], again)
        shutil.rmtree(again / "checkpoints" / "step_6")
        mst("pretrain", "--resume", again, *processes(then))
        assert_same(runs[1], again, 6)
