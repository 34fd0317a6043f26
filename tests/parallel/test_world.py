"""Processes of a run: sums, agreements, errors that one of them tells the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mst
from mst.errors import DataError, MstError, RunFailure, UsageError
from mst.parallel.launch import from_environment, wanted_here
from mst.parallel.world import Elsewhere, World
from parallel.processes import run_in_processes


def test_a_process_alone_talks_to_itself() -> None:
    world, value = World.current(), torch.arange(3.0)
    assert (world.rank, world.size, world.first) == (0, 1, True)
    world.add(value)
    assert value.tolist() == [0.0, 1.0, 2.0]
    assert world.agree(7) == 7
    assert world.collect("a") == ["a"]
    assert world.from_first(lambda: 3) == 3
    error = ValueError("x")
    assert world.tell(error) is error


def talk(folder: str) -> None:
    world = World.current()
    small, large, whole = torch.tensor([1.0, world.rank]), torch.ones(2, 3, dtype=torch.float64), torch.tensor([2])
    world.add(small, large, whole)
    found = {
        "sums": [small.tolist(), large.sum().item(), whole.tolist()],
        "largest": world.agree(10 + world.rank),
        "collected": world.collect(f"rank {world.rank}"),
        "first": world.from_first(lambda: world.rank),
    }
    world.refuse_differences("same", "settings")
    try:
        world.refuse_differences(world.rank, "settings")
    except RunFailure as error:
        found["differ"] = str(error)
    except Elsewhere:
        found["differ"] = "elsewhere"
    Path(folder, f"{world.rank}.json").write_text(json.dumps(found))


def test_sums_and_agreements(tmp_path: Path) -> None:
    run_in_processes("parallel.test_world:talk", 3, str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    for each in found:
        assert each["sums"] == [[3.0, 3.0], 18.0, [6]]
        assert each["largest"] == 12
        assert each["collected"] == ["rank 0", "rank 1", "rank 2"]
        assert each["first"] == 0
    assert found[0]["differ"].startswith("rank 1 on ")
    assert "has other settings than rank 0" in found[0]["differ"]
    assert found[1]["differ"] == found[2]["differ"] == "elsewhere"


def fail(folder: str, failing: str) -> None:
    world = World.current()
    try:
        if world.rank == int(failing):
            raise DataError("no such image")
        world.agree()
    except BaseException as error:
        told = world.tell(error)
        assert isinstance(told, MstError)
        record = {"kind": type(told).__name__, "text": str(told), "status": told.exit_code, "silent": told.told}
        Path(folder, f"{world.rank}.json").write_text(json.dumps(record))


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_told_once(tmp_path: Path, failing: int) -> None:
    run_in_processes("parallel.test_world:fail", 2, str(tmp_path), str(failing))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["status"] == second["status"] == 2
    assert second["silent"]
    assert not first["silent"]
    assert first["text"] == "no such image" if failing == 0 else "rank 1 on" in first["text"]


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "77",
}


def test_how_processes_were_started() -> None:
    assert from_environment({}) is None
    found = from_environment(TORCHRUN)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.address, found.port) == (1, 2, 1, "a", 29500)
    found = from_environment(SRUN)
    assert found is not None
    assert (found.rank, found.size, found.local_size, found.address) == (2, 3, 1, "localhost")
    assert from_environment({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert from_environment(batch_script) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK, LOCAL_RANK set but not WORLD_SIZE"),
        ({"MASTER_PORT": None}, "set but not MASTER_PORT"),
        ({"RANK": "2"}, "RANK is '2': it should be a number below 2"),
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    ],
)
def test_half_set_variables_are_one_line(changes: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(MstError, match=message):
        from_environment(environment)


def test_how_many_processes_a_command_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert wanted_here(1) == 1
    assert wanted_here(2) == 2
    for count in (0, -1, 100_000):
        with pytest.raises(UsageError, match=rf"--processes {count}: this machine has \d+ cores and \d+ GPUs"):
            wanted_here(count, flag="--processes")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert wanted_here(2) == 1


def test_a_call_from_python_is_one_process(tmp_path: Path) -> None:
    config = mst.load_recipe("debug", {"data.train": str(tmp_path), "runtime.processes": 2})
    with pytest.raises(UsageError, match=r"--runtime.processes 2: this call is one process"):
        mst.pretrain(config, tmp_path / "run")


def test_a_first_host_without_an_address() -> None:
    step = {**SRUN, "SLURM_STEP_NODELIST": "no-such-host[07-09,12]"}
    with pytest.raises(MstError, match=r"no-such-host07 has no address here: export MASTER_ADDR"):
        from_environment(step)
    found = from_environment({**step, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"})
    assert found is not None
    assert found.address == "10.0.0.1"
