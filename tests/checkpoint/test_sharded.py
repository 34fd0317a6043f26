"""Checkpoints in several parts: whole again whatever the number of parts, committed once, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands.calls import call
from mst.checkpoint.format import INFO, Damaged, read_folder, write_parts
from mst.checkpoint.sharded import joined, split
from mst.checkpoint.store import CheckpointStore
from mst.engine.shards import ShardWriter
from mst.errors import RunFailure


class Part:
    """What a process holds of a tensor that is cut along its first dimension."""

    def __init__(self, whole: Tensor, place: int, size: int) -> None:
        parts = whole.chunk(size)
        self._own = parts[place] if place < len(parts) else whole[:0]

    def to_local(self) -> Tensor:
        return self._own


WHOLE: dict[str, dict[str, Any]] = {
    "student": {"weight": torch.arange(35.0).view(7, 5), "bias": torch.arange(3.0), "token": torch.ones(1, 1, 4)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(35.0).view(7, 5)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    },
    "progress": {"step": 3, "center": torch.zeros(1, 2)},
}


def held(place: int, size: int) -> dict[str, Any]:
    student = {name: Part(value, place, size) for name, value in WHOLE["student"].items()}
    state = {"step": torch.tensor(3.0), "exp_avg": Part(WHOLE["optimizer"]["state"][0]["exp_avg"], place, size)}
    return {**WHOLE, "student": student, "optimizer": {**WHOLE["optimizer"], "state": {0: state}}}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_parts_are_the_whole(size: int) -> None:
    parts: dict[str, Any] = {}
    for place in range(size):
        parts |= split(held(place, size), place, rest=place == 0)
    found = joined(parts)
    assert found.keys() == WHOLE.keys()
    torch.testing.assert_close(found["student"], WHOLE["student"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer"]["state"], WHOLE["optimizer"]["state"], rtol=0, atol=0)
    assert found["progress"] is parts["progress"]
    assert joined(dict(WHOLE)) == WHOLE
    assert split(held(0, size), None, rest=False) == {}


def test_what_is_written_is_a_copy() -> None:
    own = torch.ones(4)
    parts = split({"student": {"weight": Part(own, 0, 1), "count": own}}, 0, rest=True)
    own.zero_()
    assert parts["shard_0000"]["student/weight"].sum() == parts["rest"]["student"]["count"].sum() == 4


class Both:
    """The first of two processes; the other one's work is done here when they tell each other of it."""

    place: int | None = 0

    def __init__(self, folder: Path, *, problem: str | None = None, lost: bool = False) -> None:
        self.folder, self.problem, self.lost, self.go = folder, problem, lost, threading.Event()

    def exchange(self, value: Any) -> list[Any]:
        assert self.go.wait(60)
        if self.lost:
            raise RuntimeError("Connection closed by peer")
        if self.problem is not None:
            return [value, ({}, self.problem, "rank 1 on b")]
        (aside,) = self.folder.glob(".aside-*")
        return [value, (write_parts(aside, split(held(1, 2), 1, rest=False)), None, "rank 1 on b")]


def writer(folder: Path, **options: Any) -> tuple[ShardWriter, CheckpointStore, Both]:
    store, both = CheckpointStore(folder, keep=1), Both(folder, **options)
    return ShardWriter(store, both), store, both


def test_a_checkpoint_is_there_when_all_have_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, store, both = writer(tmp_path / "checkpoints")
    store.save(1, {"progress": {"step": 1}}, {})
    shards.start(3, held(0, 2), {"rows": {}}, provisional=False)
    assert store.steps() == [1]  # it is being written
    both.go.set()
    shards.wait()
    assert store.steps() == [3]
    assert shards.committed == 3
    found = store.load_latest()
    torch.testing.assert_close(found.parts["student"], WHOLE["student"], rtol=0, atol=0)
    answer = call(capsys, "checkpoint", "convert", tmp_path, tmp_path / "whole")
    assert answer.status == 0, answer.err
    plain = read_folder(tmp_path / "whole" / "step_3")
    assert {path.name for path in plain.path.iterdir()} == {INFO, "student.pt", "optimizer.pt", "progress.pt"}
    torch.testing.assert_close(plain.parts["optimizer"]["state"], WHOLE["optimizer"]["state"], rtol=0, atol=0)
    assert "holds checkpoints" in call(capsys, "checkpoint", "convert", tmp_path, tmp_path / "whole").line
    assert "mst checkpoint convert RUN OUT" in call(capsys, "checkpoint", "convert", tmp_path).line
    (store.path(3) / "shard_0001.pt").unlink()
    with pytest.raises(Damaged, match="shard_0001"):
        read_folder(store.path(3))


@pytest.mark.parametrize(
    ("options", "said"), [({"problem": "No space left"}, "rank 1 on b: No space"), ({"lost": True}, "is gone")]
)
def test_without_all_of_it_the_one_before_stays(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    shards, store, both = writer(tmp_path, **options)
    store.save(1, {"progress": {"step": 1}}, {})
    both.go.set()
    shards.start(3, held(0, 2), {}, provisional=False)
    with pytest.raises(RunFailure, match=said):
        shards.wait()
    shards.wait()
    assert store.steps() == [1]
    assert store.load_latest().step == 1


def test_parts_of_different_checkpoints_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    aside = store.begin(3)
    assert aside is not None
    parts = split(held(0, 2), 0, rest=True) | {"shard_0001": {"student/weight": torch.ones(2, 9)}}
    store.commit(aside, 3, write_parts(aside, parts), {}, version=3)
    with pytest.raises(Damaged, match="student/weight do not belong together"):
        read_folder(store.path(3))
