"""A run that is interrupted and resumed is the run that was not; whatever ends it, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mst.config.schema import RunConfig, RunPlan
from mst.engine import feeder, trainer
from mst.engine.trainer import Trainer
from mst.errors import CheckpointError, Interrupted, RunFailure
from mst.model.backbone import Backbone
from mst.model.backbone_file import load_backbone
from mst.runtime.storage.files import aside_of
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train import pretraining, step
from mst.train.pretraining import ROW_KEYS, Evaluator, Pretraining
from mst.train.state import TrainState
from mst.views.record import Crops
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state

TIMES = {"seconds", "images_per_second", "data_wait", "memory_gb"}
STEPS = 7
STARTED = {"init_from": "weights.pth"}


def knn(backbone: Backbone) -> dict[str, float]:
    assert not backbone.training
    return {"knn_top1": float(sum(p.double().sum() for p in backbone.parameters())), "knn_k": 20}


def train(
    root: Path,
    config: RunConfig,
    *,
    source: Callable[[int], Iterator[Crops]] | None = None,
    dtype: torch.dtype = torch.float32,
    plan: RunPlan | None = None,
    evaluator: Evaluator | None = knn,
) -> TrainState:
    plan = plan or tiny_plan(config, STEPS)
    task = Pretraining(
        tiny_state(config, plan),
        source or (lambda first: tiny_batches(config, plan, first)),
        config=config,
        plan=plan,
        run=RunDir(root),
        dtype=dtype,
        evaluator=evaluator,
        samples=torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).to(torch.uint8),
    )
    Trainer(task, task.intervals, task.outputs).fit()
    return task.state


def copied_at(step: int, root: Path, copy: Path, config: RunConfig) -> Callable[[int], Iterator[Crops]]:
    """Batches during which the run's folder is copied after `step` steps: what a SIGKILL leaves behind."""

    def source(first: int) -> Iterator[Crops]:
        for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS), first)):
            if number == step * config.train.accumulate:
                shutil.copytree(root, copy)
            yield views

    return source


def failing_at(step: int, config: RunConfig, act: Callable[[], Any]) -> Callable[[int], Iterator[Crops]]:
    """Batches, and something that happens when that of step `step` (from 0) is asked for."""

    def source(first: int) -> Iterator[Crops]:
        for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS), first), first):
            if number == step:
                act()
            yield views

    return source


def rows(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(root / "metrics.jsonl")]


def files(root: Path) -> list[str]:
    """All that a run's folder holds."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def saved_steps(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (root / "checkpoints").iterdir())


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
    for stop in (1, 3, 6) if name == "plain" else (3,):
        root = tmp_path / f"killed{stop}"
        train(
            tmp_path / f"run{stop}", config, source=copied_at(stop, tmp_path / f"run{stop}", root, config), dtype=dtype
        )
        torch.rand(stop)  # the process's own random state does not matter
        resumed = train(root, config, dtype=dtype)
        assert_same(whole.state_dicts(), resumed.state_dicts())
        assert rows(root) == rows(tmp_path / "whole")
        assert (root / "backbone.safetensors").read_bytes() == (tmp_path / "whole/backbone.safetensors").read_bytes()
        assert files(root) == files(tmp_path / "whole")


def test_what_was_not_written_before_a_kill_is_written_by_the_resumed_run(tmp_path: Path) -> None:
    """A kill between the checkpoint and what follows it: the row on its way to the disk, evaluation, backbone."""
    config = tiny_config(checkpoint={"every_steps": 3}, monitor={"every_steps": 3, "knn_every_steps": 3})
    whole = train(tmp_path / "whole", config)
    root = tmp_path / "killed"
    train(tmp_path / "run", config, source=copied_at(3, tmp_path / "run", root, config))
    lines = (root / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 3, 3]
    (root / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:9])
    (root / "previews/step_0000003.png").unlink()
    (root / "checkpoints/.aside-1-step_6").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("backbone.safetensors", "previews/step_0000006.png", "metrics.jsonl"):
        left = aside_of(root / name)
        left.with_name(left.name.replace(f"-{os.getpid()}.", f"-{dead.pid}.")).write_bytes(b"half")
    resumed = train(root, config)
    assert_same(whole.state_dicts(), resumed.state_dicts())
    assert rows(root) == rows(tmp_path / "whole")
    assert files(root) == files(tmp_path / "whole")


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
    train(tmp_path, config, source=lambda first: iter(()))
    assert before == (rows(tmp_path), (tmp_path / "backbone.safetensors").read_bytes())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], signum: signal.Signals
) -> None:
    config = tiny_config()
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"mst pretrain --resume {tmp_path}") as caught:
        train(tmp_path / "run", config, source=failing_at(2, config, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.exit_code == 128 + signum
    assert signal.getsignal(signum) == before
    assert signum.name in capfd.readouterr().err
    assert max(int(path.name[5:]) for path in (tmp_path / "run/checkpoints").iterdir()) == 3
    assert load_backbone(tmp_path / "run").metadata["step"] == 3
    resumed = train(tmp_path / "run", config)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_read_that_hangs_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifo, a dead network mount: the signal saves the last whole step and leaves."""
    monkeypatch.setattr(feeder, "PATIENCE", 0.1)
    monkeypatch.setattr(feeder, "CLOSING", 0.1)
    left: list[bool] = []
    monkeypatch.setattr(feeder, "leave_behind", lambda: left.append(True))
    config, released = tiny_config(), threading.Event()

    def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        released.wait()

    with pytest.raises(Interrupted, match="stopped at step 3 of 7"):
        train(tmp_path / "run", config, source=failing_at(3, config, hang))
    released.set()
    assert left == [True]
    assert_same(train(tmp_path / "whole", config).state_dicts(), train(tmp_path / "run", config).state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("signum", [None, signal.SIGTERM])
def test_when_the_images_fail_what_was_learnt_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals | None
) -> None:
    """A signal to all processes at once kills the loader's first: that is the stop that was asked for."""
    monkeypatch.setattr(trainer, "SIGNAL_LAG", 0.3)
    config = tiny_config(checkpoint={"every_steps": 100})

    def fail() -> None:
        if signum is not None:
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
        raise RunFailure("a loader process died")

    with pytest.raises(RunFailure if signum is None else Interrupted):
        train(tmp_path / "run", config, source=failing_at(3, config, fail))
    resumed = train(tmp_path / "run", config)
    assert resumed.step == STEPS
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_images_that_fail_at_once_leave_a_run_to_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SIGNAL_LAG", 0.1)
    config = tiny_config()

    def fail() -> None:
        raise RunFailure("a loader process died")

    with pytest.raises(RunFailure, match="loader process"):
        train(tmp_path, config, source=failing_at(0, config, fail))
    assert train(tmp_path, config).step == STEPS
    assert [row["step"] for row in rows(tmp_path)].count(0) == 1


def test_a_second_interrupt_stops_at_once_and_saves_whole_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, released = tiny_config(checkpoint={"every_steps": 100}), threading.Event()

    def interrupt() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        released.wait(2)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", config, source=failing_at(3, config, interrupt))
    released.set()
    assert "saved at step 3: mst pretrain --resume" in " ".join(capsys.readouterr().err.split())
    assert_same(train(tmp_path / "whole", config).state_dicts(), train(tmp_path / "run", config).state_dicts())


def test_damaged_checkpoint_falls_back_to_the_same_result(tmp_path: Path) -> None:
    config = tiny_config()
    whole = train(tmp_path / "whole", config, source=copied_at(5, tmp_path / "whole", tmp_path / "run", config))
    weights = tmp_path / "run/checkpoints/step_4/student.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    resumed = train(tmp_path / "run", config)
    assert_same(whole.state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_resume_refuses_changed_settings_by_name(tmp_path: Path) -> None:
    train(tmp_path, tiny_config())
    with pytest.raises(CheckpointError, match=r"optimizer\.weight_decay 0\.04 -> 0\.5"):
        train(tmp_path, tiny_config(optimizer={"weight_decay": 0.5}))
    with pytest.raises(CheckpointError, match="total_steps 7 -> 9"):
        train(tmp_path, tiny_config(), plan=tiny_plan(tiny_config(), 9))


def broken(config: RunConfig, bad: set[int]) -> Callable[[int], Iterator[Crops]]:
    def source(first: int) -> Iterator[Crops]:
        for number, views in enumerate(tiny_batches(config, tiny_plan(config, STEPS), first), first):
            yield views._replace(global_crops=views.global_crops.float() * torch.nan) if number in bad else views

    return source


def test_bad_steps_are_skipped_and_listed(tmp_path: Path) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 2}, monitor={"every_steps": 1})
    state = train(tmp_path, config, source=broken(config, {1, 2, 4}))
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
        train(tmp_path, config, source=broken(config, {3, 4}))
    assert saved_steps(tmp_path) == [2, 5]
    state = train(tmp_path, config)  # the images were mended
    assert (state.step, state.bad_steps, state.bad_streak) == (7, 2, 0)
    assert saved_steps(tmp_path)[-2:] == [6, 7]


def test_a_lower_rate_goes_on_from_before_the_bad_steps_and_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 1}, checkpoint={"every_steps": 2, "keep": 2})
    plan = tiny_plan(config, STEPS)
    with pytest.raises(RunFailure, match=rf"--resume {tmp_path} --optimizer.lr {plan.lr / 2:.3g} "):
        train(tmp_path, config, source=broken(config, {4, 5}))
    assert saved_steps(tmp_path) == [2, 4, 6]
    lower = tiny_config(train={"batch_size": 8, "max_bad_steps": 1}, checkpoint=config.checkpoint.model_dump(),
                        optimizer={"lr": plan.lr / 2})  # fmt: skip
    first: list[int] = []

    def source(step: int) -> Iterator[Crops]:
        first.append(step)
        return tiny_batches(lower, plan, step)

    train(tmp_path, lower, source=source)
    assert first == [4]
    assert "from step 4 on with optimizer.lr None -> " in " ".join(capsys.readouterr().err.split())
    found = [row for row in rows(tmp_path) if "lr" in row]
    assert [row["step"] for row in found] == [1, 2, 4, 6, 7]
    assert [row["bad_steps"] for row in found][-1] == 0
    for number in (6, 7):  # the change lies in every checkpoint from then on
        info = json.loads((tmp_path / f"checkpoints/step_{number}/info.json").read_text())["info"]
        changed = {"optimizer.lr": [None, plan.lr / 2]}
        assert info["plan"]["interventions"] == [{"step": 4, "changed": changed}]
    assert train(tmp_path, lower).step == STEPS
    with pytest.raises(CheckpointError, match="weight_decay"):
        train(tmp_path, tiny_config(optimizer={"weight_decay": 0.5}))


def test_without_a_checkpoint_before_the_bad_steps_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 1})
    with pytest.raises(RunFailure, match="2 steps in succession"):
        train(tmp_path, config, source=broken(config, {0, 1}))
    with pytest.raises(CheckpointError, match=r"step_2 is of steps that were skipped.*: start the run anew"):
        train(tmp_path, tiny_config(train={"batch_size": 8, "max_bad_steps": 1}, optimizer={"lr": 0.1}))


def test_a_bad_streak_takes_no_good_checkpoint_s_place(tmp_path: Path) -> None:
    config = tiny_config(train={"batch_size": 8, "max_bad_steps": 9}, checkpoint={"every_steps": 1, "keep": 2})
    train(tmp_path, config, source=broken(config, {2, 3, 4, 5, 6}))
    assert saved_steps(tmp_path) == [1, 2, 7]


def test_collapse_stops_or_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretraining, "collapse_message", lambda *_, **__: "all is one: lower --this-knob")
    with pytest.raises(RunFailure, match="lower --this-knob"):
        train(tmp_path / "stop", tiny_config(monitor={"every_steps": 1, "collapse": "stop"}))
    stopped = max(saved_steps(tmp_path / "stop"))
    with pytest.raises(
        RunFailure, match=f"at step {stopped + 1}: .*lower --this-knob.*--monitor.collapse warn goes on"
    ):
        train(tmp_path / "stop", tiny_config(monitor={"every_steps": 1, "collapse": "stop"}))
    assert train(tmp_path / "stop", tiny_config(monitor={"every_steps": 1})).step == STEPS
    capsys.readouterr()
    train(tmp_path / "warn", tiny_config(monitor={"every_steps": 1}))
    assert capsys.readouterr().err.count("lower --this-knob") == 1
    train(tmp_path / "off", tiny_config(monitor={"every_steps": 1, "collapse": "off"}))
    assert "lower --this-knob" not in capsys.readouterr().err


def falling(*accuracies: float) -> Evaluator:
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
        train(tmp_path, config, evaluator=falling(64))
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
    assert said.count("more than --monitor.guard-drop") == len(warnings)
    assert f"k-NN {accuracies[-1]:.1f} % (start 70.0)" in said
    assert all(warning in said for warning in warnings)


def test_a_start_that_was_not_scored_cannot_be_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(model=STARTED)
    killed = tmp_path / "killed"
    train(tmp_path / "run", config, source=copied_at(3, tmp_path / "run", killed, config), evaluator=None)
    train(killed, config, evaluator=falling(1, 0, 0))
    said = " ".join(capsys.readouterr().err.split())
    assert "the start was not scored" in said
    assert "at the start" not in said


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    with pytest.raises(
        RunFailure, match=r"No space left on device.*; saving step \d failed as well: .*step 2 is intact"
    ):
        train(tmp_path / "run", config, source=failing_at(3, config, lambda: monkeypatch.setattr(os, "fsync", full)))
    monkeypatch.undo()
    resumed = train(tmp_path / "run", config)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())


def test_a_row_that_the_disk_refuses_is_written_by_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(checkpoint={"every_steps": 100})
    refuse = failing_at(3, config, lambda: monkeypatch.setattr("mst.runtime.storage.record.append_jsonl", full))
    with pytest.raises(RunFailure, match=f"cannot read or write {tmp_path / 'run'}: No space left"):
        train(tmp_path / "run", config, source=refuse)
    monkeypatch.undo()
    assert saved_steps(tmp_path / "run") == [4]
    resumed = train(tmp_path / "run", config)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def removed(root: Path, what: str) -> None:
    shutil.rmtree(root / what) if (root / what).is_dir() else (root / what).unlink()


FAILURES: dict[str, tuple[Callable[[Path], None], str]] = {
    "metrics.jsonl is a folder": (
        lambda root: (removed(root, "metrics.jsonl"), (root / "metrics.jsonl").mkdir()),
        "metrics.jsonl",
    ),
    "the folder is gone": (shutil.rmtree, "No such file or directory"),
    "previews is a file": (lambda root: (removed(root, "previews"), (root / "previews").touch()), "previews"),
    "environment.json is damaged": (lambda root: (root / "environment.json").write_bytes(b"\xff{"), ""),
    "tensorboard is gone": (lambda root: removed(root, "tensorboard"), "tensorboard: No such file or directory"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_beside_the_run_costs_no_step(tmp_path: Path, name: str) -> None:
    act, message = FAILURES[name]
    config, root = tiny_config(checkpoint={"every_steps": 4}, monitor={"tensorboard": True}), tmp_path / "run"
    root.mkdir()
    (root / "config.json").write_text("{}")
    source = failing_at(3, config, lambda: act(root))
    if message:
        with pytest.raises(RunFailure, match=message):
            train(root, config, source=source)
        assert saved_steps(root) == [4]
        for file in ("metrics.jsonl", "previews"):
            if name.startswith(file):
                removed_kind = root / file
                removed_kind.rmdir() if removed_kind.is_dir() else removed_kind.unlink()
        train(root, config)
    else:
        train(root, config, source=source)
    assert (root / "config.json").read_text() == "{}"
    assert saved_steps(root)[-1] == STEPS


class Broken(Exception):
    """Nothing of this package."""


@pytest.mark.parametrize(
    "error", [Broken("evaluator"), FileNotFoundError(2, "No such file", "knn/3.png"), KeyboardInterrupt()]
)
def test_whatever_an_evaluator_raises_what_was_learnt_is_saved(tmp_path: Path, error: BaseException) -> None:
    config = tiny_config(checkpoint={"every_steps": 100})
    scored = 0

    def failing(backbone: Backbone) -> dict[str, float]:
        nonlocal scored
        scored += 1
        if scored == 2:
            raise error
        return knn(backbone)

    kind, message = (RunFailure, "knn/3.png: No such file") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(kind, match=message):
        train(tmp_path / "run", config, evaluator=failing)
    assert saved_steps(tmp_path / "run") == [3]
    resumed = train(tmp_path / "run", config)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")  # the evaluation that failed came again


@pytest.mark.parametrize("where", ["gradients", "apply"])
def test_a_half_done_step_is_taken_back_or_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = tiny_config(checkpoint={"every_steps": 2}, model={"head_norm": "batch"})
    name = {"gradients": "clip_per_tensor_", "apply": "ema_update"}[where]
    real = getattr(step, name)

    def failing(*args: Any, **options: Any) -> Any:
        if failing_now:
            raise RuntimeError("not enough memory")
        return real(*args, **options)

    failing_now: list[bool] = []
    monkeypatch.setattr(step, name, failing)
    with pytest.raises(RuntimeError, match="not enough memory"):
        train(tmp_path / "run", config, source=failing_at(3, config, lambda: failing_now.append(True)))
    failing_now.clear()
    assert saved_steps(tmp_path / "run") == ([2, 3] if where == "gradients" else [2])
    resumed = train(tmp_path / "run", config)
    assert_same(train(tmp_path / "whole", config).state_dicts(), resumed.state_dicts())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
