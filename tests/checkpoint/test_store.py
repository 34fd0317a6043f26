"""A checkpoint survives whatever happens to the process, the disk or the files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mst.checkpoint.store import PROVISIONAL, CheckpointStore
from mst.errors import CheckpointError, RunFailure


def parts(step: int) -> dict[str, dict[str, Any]]:
    return {
        "student": {"weight": torch.full((64, 3), float(step)), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "progress": {"seconds": 1.5 * step, "empty": torch.zeros(0)},
    }


def saved(folder: Path, *steps: int, keep: int = 5) -> CheckpointStore:
    store = CheckpointStore(folder, keep=keep)
    for step in steps:
        store.save(step, parts(step), {"config": {"seed": step}})
    return store


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_remove(path: Path) -> None:
    path.unlink()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 7).load_latest()
    assert checkpoint.step == 7
    assert checkpoint.info == {"config": {"seed": 7}}
    assert checkpoint.parts.keys() == parts(7).keys()
    torch.testing.assert_close(checkpoint.parts["student"], parts(7)["student"], rtol=0, atol=0)
    assert checkpoint.parts["optimizer"] == parts(7)["optimizer"]
    assert checkpoint.parts["progress"]["seconds"] == 10.5


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2, 10, 3000, keep=2)
    assert store.steps() == [10, 3000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_3000"]


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty, damage_remove])
@pytest.mark.parametrize("name", ["info.json", "student.pt", "optimizer.pt", "progress.pt"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    store = saved(tmp_path, 1, 2)
    damage(tmp_path / "step_2" / name)
    assert store.load_latest().step == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "step_2" in lines[0]
    assert name in lines[0]


def test_every_bit_of_info_counts(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    info = tmp_path / "step_1" / "info.json"
    record = json.loads(info.read_text())
    record["info"]["config"]["seed"] = 2
    info.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"info\.json was changed"):
        store.load_latest()


def test_none_usable_names_what_is_wrong(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2)
    damage_truncate(tmp_path / "step_1" / "student.pt")
    damage_remove(tmp_path / "step_2" / "optimizer.pt")
    with pytest.raises(
        CheckpointError, match=r"step_2 is damaged: optimizer\.pt.*step_1 is damaged: student\.pt"
    ) as caught:
        store.load_latest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p / ".aside-1-step_3").mkdir(parents=True)]
)
def test_nothing_saved_yet(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "checkpoints")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    assert store.steps() == []
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        store.load_latest()


def test_going_on_after_a_fall_back_never_loses_the_last_sound_one(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2, 3, keep=3)
    damage_flip(tmp_path / "step_3" / "student.pt")
    store = CheckpointStore(tmp_path, keep=1)
    assert store.load_latest().step == 1 + 1
    store.save(3, parts(3), {})  # takes the damaged one's place
    assert store.steps() == [3]
    assert store.load_latest().step == 3
    damage_flip(tmp_path / "step_3" / "student.pt")
    store.save(2, parts(2), {})  # a damaged future is removed once the past is safe
    assert store.steps() == [2]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step_1", tmp_path / ".aside-4242-step_2")
    store.save(2, parts(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_2"]


def test_provisional_ones_take_no_other_s_place(tmp_path: Path) -> None:
    store = saved(tmp_path, 1, 2, keep=2)
    for step in (3, 4):
        store.save(step, parts(step), {}, provisional=True)
    assert store.steps() == [1, 2, 4]
    assert [store.is_provisional(step) for step in store.steps()] == [False, False, True]
    assert store.load_latest().step == 4
    assert store.load_latest(lambda checkpoint: not checkpoint.info.get(PROVISIONAL)).step == 2
    store.save(4, parts(9), {})  # on another way: the provisional one is replaced
    assert (store.steps(), store.is_provisional(4)) == ([2, 4], False)
    torch.testing.assert_close(store.load_latest().parts["student"], parts(9)["student"], rtol=0, atol=0)


def test_an_unknown_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mst.checkpoint.format.FORMAT_VERSION", 99)
    store = saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99"):
        store.load_latest()


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def replacement(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            no_space()
        return function(*args)

    return replacement


def assert_first_is_intact(store: CheckpointStore, folder: Path, caught: pytest.ExceptionInfo[RunFailure]) -> None:
    assert "No space left" in str(caught.value)
    assert "step 1 is intact" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["step_1"]
    assert store.load_latest().step == 1


@pytest.mark.parametrize("call", range(1, 7))  # three parts, info.json, the folder, its parent
def test_disk_full_while_flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    store = saved(tmp_path, 1, keep=1)
    monkeypatch.setattr(os, "fsync", failing_at(call, os.fsync))
    if call == 6:  # the new one has its name already: both are there
        with pytest.raises(RunFailure, match="No space left"):
            store.save(2, parts(2), {})
        assert store.steps() == [1, 2]
        return
    with pytest.raises(RunFailure) as caught:
        store.save(2, parts(2), {})
    assert_first_is_intact(store, tmp_path, caught)


@pytest.mark.parametrize("name", ["mkdir", "rename", "open"])
def test_disk_full_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store = saved(tmp_path, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, no_space if name != "mkdir" else failing_mkdir)
        with pytest.raises(RunFailure) as caught:
            store.save(2, parts(2), {})
    assert_first_is_intact(store, tmp_path, caught)


def failing_mkdir(path: Path, **_: object) -> None:
    if path.name.startswith(".aside"):
        no_space()


def test_disk_full_while_writing_for_real(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    store = saved(tmp_path, 1)
    big = parts(2) | {"teacher": {"weight": torch.zeros(300_000)}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(RunFailure, match="step 1 is intact"):
            store.save(2, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    store.save(2, big, {})
    assert store.load_latest().step == 2


def test_history_reaches_back(tmp_path: Path) -> None:
    """A checkpoint at least `history` steps old is always there, and a few between it and the newest."""
    store = CheckpointStore(tmp_path, keep=1, history=40)
    for step in range(0, 201, 10):
        store.save(step, parts(step), {})
        steps = store.steps()
        assert steps[-1] == step
        assert min(steps) <= max(step - 40, 0)
        assert len(steps) <= 6
    assert store.steps() == [160, 180, 200]
    assert store.discard(lambda saved, _: saved > 160) == [180, 200]
    assert store.load_latest().step == 160
