"""A run that is interrupted and resumed is the run that was not; whatever ends it, nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mst.config.schema import RunConfig, RunPlan
from mst.errors import CheckpointError, Interrupted, RunFailure
from mst.model.backbone import Backbone
from mst.model.backbone_file import load_backbone
from mst.runtime.results import read_jsonl
from mst.runtime.rundir import RunDir
from mst.train import loop
from mst.train.loop import ROW_KEYS, fit, restore
from mst.train.state import TrainState
from mst.views.record import Views
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state

TIMES = {"seconds", "images_per_second", "data_wait"}
STEPS = 7
STARTED = {"init_from": "weights.pth"}


def knn(backbone: Backbone) -> dict[str, float]:
    assert not backbone.training
    return {"knn_top1": float(sum(p.double().sum() for p in backbone.parameters())), "knn_k": 20}


def train(
    root: Path,
    config: RunConfig,
    *,
    batches: Iterator[Views] | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float32,
    plan: RunPlan | None = None,
    evaluator: loop.Evaluator | None = knn,
) -> TrainState:
    plan = plan or tiny_plan(config, STEPS)
    state, run = tiny_state(config, plan), RunDir(root)
    if resume:
        restore(state, config, plan, run)
    fit(
        state,
        tiny_batches(config, plan, state.step) if batches is None else batches,
        config=config,
        plan=plan,
        run=run,
        dtype=dtype,
        evaluator=evaluator,
        samples=torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).to(torch.uint8),
    )
    return state


def killed_before(step: int, config: RunConfig) -> Iterator[Views]:
    """Batches that end like a SIGKILL: without warning."""
    yield from itertools.islice(tiny_batches(config, tiny_plan(config, STEPS)), step * config.train.accumulate)
    raise MemoryError


def rows(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(root / "metrics.jsonl")]


def assert_same(left: Any, right: Any, path: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - TIMES:
            assert_same(left[key], right[key], f"{path}/{key}")
    else:
        assert left == right, path


VARIANTS: dict[str, tuple[dict[str, dict[str, Any]], torch.dtype]] = {
    "plain": ({}, torch.float32),
    "batch norm, accumulation, bf16": (
        {"model": {"head_norm": "batch", "drop_path": 0.3}, "train": {"accumulate": 2}},
        torch.bfloat16,
    ),
    "dino, free gain": (
        {"objective": {"strategy": "none", "restoration_weight": 0}, "model": {"norm_last_layer": False}},
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, name: str) -> None:
    sections, dtype = VARIANTS[name]
    config = tiny_config(**sections)
    whole = train(tmp_path / "whole", config, dtype=dtype)
    for step in (1, 3, 6) if name == "plain" else (3,):
        root = tmp_path / f"killed{step}"
        with pytest.raises(MemoryError):
            train(root, config, batches=killed_before(step, config), dtype=dtype)
        torch.rand(step)  # the process's own random state does not matter
        resumed = train(root, config, resume=True, dtype=dtype)
        assert_same(whole.state_dicts(), resumed.state_dicts())
        assert rows(root) == rows(tmp_path / "whole")
        assert (root / "backbone.safetensors").read_bytes() == (tmp_path / "whole/backbone.safetensors").read_bytes()
        previews = sorted(path.name for path in (tmp_path / "whole/previews").iterdir())
        assert sorted(path.name for path in (root / "previews").iterdir()) == previews


def test_what_a_run_leaves(tmp_path: Path) -> None:
    config = tiny_config(checkpoint={"every_steps": 2, "keep": 2})
    train(tmp_path, config)
    found = rows(tmp_path)
    metrics = [row for row in found if "knn_top1" not in row]
    assert [row["step"] for row in metrics] == [1, 2, 4, 6, 7]
    assert [row["step"] for row in found if "knn_top1" in row] == [0, 3, 6, 7]
    for row in read_jsonl(tmp_path / "metrics.jsonl"):
        if "knn_top1" not in row:
            assert tuple(row) == ROW_KEYS
            assert all(row[key] is not None for key in ROW_KEYS)
    assert metrics[-1]["images"] == 56
    assert metrics[-1]["epoch"] == 1.75
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_6", "step_7"]
    assert load_backbone(tmp_path).metadata["step"] == 7
    assert {"step_0000000.png", "step_0000007.png"} <= {path.name for path in (tmp_path / "previews").iterdir()}


def test_resuming_a_finished_run_only_exports_again(tmp_path: Path) -> None:
    config = tiny_config()
    train(tmp_path, config)
    before = rows(tmp_path), (tmp_path / "backbone.safetensors").read_bytes()
    (tmp_path / "backbone.safetensors").unlink()
    train(tmp_path, config, resume=True, batches=iter(()))
    assert before == (rows(tmp_path), (tmp_path / "backbone.safetensors").read_bytes())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    config = tiny_config()

    def signalled() -> Iterator[Views]:
        for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS))):
            if number == 2:
                os.kill(os.getpid(), signum)
            yield views

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"mst pretrain --resume {tmp_path}") as caught:
        train(tmp_path / "run", config, batches=signalled())
    assert caught.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert signum.name in capfd.readouterr().err
    assert max(int(path.name[5:]) for path in (tmp_path / "run/checkpoints").iterdir()) == 3
    assert load_backbone(tmp_path / "run").metadata["step"] == 3
    resumed = train(tmp_path / "run", config, resume=True)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("signum", [None, signal.SIGTERM])
def test_when_the_images_fail_what_was_learnt_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals | None
) -> None:
    """A signal to all processes at once kills the loader's first: that is the stop that was asked for."""
    monkeypatch.setattr(loop, "SIGNAL_LAG", 0.3)
    config = tiny_config(checkpoint={"every_steps": 100})

    def failing() -> Iterator[Views]:
        yield from itertools.islice(tiny_batches(config, tiny_plan(config, STEPS)), 3)
        if signum is not None:
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
        raise RunFailure("a loader process died")

    with pytest.raises(RunFailure if signum is None else Interrupted):
        train(tmp_path / "run", config, batches=failing())
    resumed = train(tmp_path / "run", config, resume=True)
    assert resumed.step == STEPS
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_images_that_fail_at_once_leave_a_run_to_start_again(tmp_path: Path) -> None:
    config = tiny_config()

    def failing() -> Iterator[Views]:
        raise RunFailure("a loader process died")
        yield

    with pytest.raises(RunFailure, match="loader process"):
        train(tmp_path, config, batches=failing())
    assert train(tmp_path, config, resume=True).step == STEPS
    assert [row["step"] for row in rows(tmp_path)].count(0) == 1


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    config = tiny_config()

    def signalled() -> Iterator[Views]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield from tiny_batches(config, tiny_plan(config, STEPS))

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, config, batches=signalled())
    assert not (tmp_path / "checkpoints").exists()


def test_damaged_checkpoint_falls_back_to_the_same_result(tmp_path: Path) -> None:
    config = tiny_config()
    whole = train(tmp_path / "whole", config)
    with pytest.raises(MemoryError):
        train(tmp_path / "run", config, batches=killed_before(5, config))
    weights = tmp_path / "run/checkpoints/step_4/student.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    resumed = train(tmp_path / "run", config, resume=True)
    assert_same(whole.state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_resume_refuses_changed_settings_by_name(tmp_path: Path) -> None:
    train(tmp_path, tiny_config())
    with pytest.raises(CheckpointError, match=r"optimizer\.lr None -> 0\.5"):
        train(tmp_path, tiny_config(optimizer={"lr": 0.5}), resume=True)
    with pytest.raises(CheckpointError, match="total_steps 7 -> 9"):
        train(tmp_path, tiny_config(), resume=True, plan=tiny_plan(tiny_config(), 9))


def broken(config: RunConfig, bad: set[int]) -> Iterator[Views]:
    for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS))):
        yield views._replace(global_crops=views.global_crops.float() * torch.nan) if number in bad else views


def test_bad_steps_are_skipped_and_listed(tmp_path: Path) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 2}, monitor={"every_steps": 1})
    state = train(tmp_path, config, batches=broken(config, {1, 2, 4}))
    assert (state.step, state.bad_steps, state.bad_streak) == (7, 3, 0)
    listed = read_jsonl(tmp_path / "bad_steps.jsonl")
    assert [row["step"] for row in listed] == [2, 3, 5]
    assert listed[0]["indices"] == list(range(8, 16))
    assert listed[0]["loss"] == "nan"
    row = next(row for row in rows(tmp_path) if row["step"] == 2)
    assert row["loss"] is None
    assert row["bad_steps"] == 1
    assert all(torch.isfinite(p).all() for p in state.pair.parameters())


def test_too_many_bad_steps_end_the_run(tmp_path: Path) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 1})
    with pytest.raises(RunFailure, match=r"2 steps in succession.*--optimizer\.lr"):
        train(tmp_path, config, batches=broken(config, {3, 4}))
    assert (tmp_path / "checkpoints/step_2").is_dir()


def test_collapse_stops_or_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "collapse_message", lambda *_, **__: "all is one: lower --this-knob")
    with pytest.raises(RunFailure, match="lower --this-knob"):
        train(tmp_path / "stop", tiny_config(monitor={"every_steps": 1, "collapse": "stop"}))
    capsys.readouterr()
    train(tmp_path / "warn", tiny_config(monitor={"every_steps": 1}))
    assert capsys.readouterr().err.count("lower --this-knob") == 1
    train(tmp_path / "off", tiny_config(monitor={"every_steps": 1, "collapse": "off"}))
    assert "lower --this-knob" not in capsys.readouterr().err


def falling(*accuracies: float) -> loop.Evaluator:
    """k-NN accuracies of one evaluation after the other."""
    left = list(accuracies)
    return lambda _: {"knn_top1": left.pop(0), "knn_k": 20}


def test_a_drop_of_trained_weights_stops_a_run_that_was_saved(tmp_path: Path) -> None:
    config = tiny_config(model=STARTED, monitor={"guard": "stop", "guard_drop": 4, "knn_data": "labelled"})
    with pytest.raises(
        RunFailure, match=r"k-NN 65\.0 % at step 6, 70\.0 % at the start .*--resume .* goes on"
    ) as caught:
        train(tmp_path, config, evaluator=falling(70, 66, 65))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "checkpoints/step_6").is_dir()
    assert load_backbone(tmp_path).metadata["step"] == 6

    # A resumed run still knows where it started.
    with pytest.raises(RunFailure, match=r"k-NN 64\.0 % at step 7, 70\.0 % at the start"):
        train(tmp_path, config, resume=True, evaluator=falling(64))
    assert [row["knn_top1"] for row in rows(tmp_path) if "knn_top1" in row] == [70, 66, 65, 64]


@pytest.mark.parametrize(
    ("sections", "accuracies", "warnings"),
    [
        ({"model": STARTED}, (70, 64.9, 64.8, 71), ["k-NN 64.9 % at step 3", "k-NN 64.8 % at step 6"]),
        ({"model": STARTED}, (70, 65, 80, 74.9), []),
        ({"model": STARTED, "monitor": {"guard": "off"}}, (70, 1, 1, 1), []),
        ({"model": STARTED, "monitor": {"guard_drop": 0.5}}, (70, 69.4, 70, 70), ["k-NN 69.4 % at step 3"]),
        ({}, (70, 1, 1, 1), []),
    ],
)
def test_a_drop_of_trained_weights_is_warned_of(
    sections: dict[str, dict[str, Any]],
    accuracies: tuple[float, ...],
    warnings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(tmp_path, tiny_config(**sections), evaluator=falling(*accuracies))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("k-NN ") == len(warnings)
    assert all(warning in said for warning in warnings)


def test_a_start_that_was_not_scored_cannot_be_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(model=STARTED)
    with pytest.raises(MemoryError):
        train(tmp_path, config, batches=killed_before(3, config), evaluator=None)
    train(tmp_path, config, resume=True, evaluator=falling(1, 0, 0))
    said = " ".join(capsys.readouterr().err.split())
    assert "the start was not scored" in said
    assert "at the start" not in said


def test_disk_full_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def filling() -> Iterator[Views]:
        for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS))):
            if number == 3:
                monkeypatch.setattr(os, "fsync", full)
            yield views

    with pytest.raises(RunFailure, match="No space left on device"):
        train(tmp_path / "run", config, batches=filling())
    monkeypatch.undo()
    resumed = train(tmp_path / "run", config, resume=True)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())


def test_disk_full_while_writing_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mst.runtime.record.append_jsonl", full)
    with pytest.raises(RunFailure, match=f"cannot write in {tmp_path}: No space left"):
        train(tmp_path, tiny_config())
