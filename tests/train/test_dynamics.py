"""A run that goes back and on with a knob moved: contiguous rows, a record of what was left, the same after kills."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mst.config.load import json_text
from mst.config.schema import RunConfig
from mst.engine import saving
from mst.engine.replay import Replay
from mst.engine.trainer import Trainer
from mst.runtime.dynamics.detectors import findings
from mst.runtime.dynamics.repair import Repair, effective_from, moves, read_repairs
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train import pretraining
from mst.train.dynamics import knobs_of, moved
from mst.train.pretraining import Pretraining
from mst.train.replay import weights
from mst.train.schedule import step_values
from mst.views.record import Crops
from train.test_pretraining import assert_same, files, knn, rows, saved_steps
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state

STEPS = 14
ALL_MASKED = {"strategy": "random", "eligible_fraction": 1.0, "mask_probability": 1.0}


def over_masked(mode: str = "repair") -> RunConfig:
    """Every token is hidden, which the second row tells (step 4)."""
    monitor = {"dynamics": mode, "every_steps": 4}
    return tiny_config(objective=ALL_MASKED, monitor=monitor, checkpoint={"every_steps": 2, "keep": 1})


def task_of(root: Path, config: RunConfig, source: Callable[[int], Iterator[Crops]] | None = None) -> Pretraining:
    plan = tiny_plan(config, STEPS)
    return Pretraining(
        tiny_state(config, plan),
        source or (lambda first: tiny_batches(config, plan, first)),
        config=config,
        plan=plan,
        run=RunDir(root),
        dtype=torch.float32,
        evaluator=knn,
        repairs=read_repairs(RunDir(root)),
    )


def train(root: Path, config: RunConfig, source: Callable[[int], Iterator[Crops]] | None = None) -> Pretraining:
    task = task_of(root, config, source)
    trainer = Trainer(task, task.intervals, task.outputs)
    root.mkdir(exist_ok=True)
    write_atomic(task.run.plan, json_text(task.plan))  # as the workflow does
    trainer.fit()
    return task


def same_run(root: Path, whole: Path) -> None:
    """Compare all that a run leaves, but for its times."""
    assert files(root) == files(whole)
    assert rows(root) == rows(whole)
    for name in ("backbone.safetensors", "repairs.jsonl", "plan.json"):
        assert (root / name).read_bytes() == (whole / name).read_bytes(), name


def described(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return over_masked().model_dump(mode="json"), json.loads((root / "plan.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pretraining]:
    root = tmp_path_factory.mktemp("whole") / "run"
    return root, train(root, over_masked())


def test_what_a_repair_leaves(whole: tuple[Path, Pretraining], capsys: pytest.CaptureFixture[str]) -> None:
    root, task = whole
    [repair] = read_repairs(RunDir(root))
    assert (repair.kind, repair.found, repair.back) == ("over-masked", 4, 0)
    assert repair.changed == {"objective.mask_probability": (1.0, 0.3)}
    steps = [row["step"] for row in rows(root) if "loss" in row]
    assert steps == [1, 4, 8, 12, 14]
    assert all(row["repairs"] == 1 and row["masked_share"] < 0.6 for row in rows(root) if "loss" in row)
    left = read_jsonl(root / "abandoned/repair_1/metrics.jsonl")
    assert [row["step"] for row in left] == [1, 3, 4]  # 3 was scored
    assert all(row["masked_share"] == 1.0 and row["repairs"] == 0 for row in left if "loss" in row)
    [noted] = json.loads((root / "plan.json").read_text())["interventions"]
    assert noted["step"] == 0
    assert noted["changed"] == {"objective.mask_probability": [1.0, 0.3]}
    assert noted["repair"] == 1
    assert "100% of the tokens are hidden" in noted["because"]
    assert [finding.kind for finding in findings(rows(root), *described(root))] == []
    assert task.state.step == STEPS
    assert saved_steps(root)[-1] == STEPS


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_without_repair_a_run_goes_on(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, over_masked(mode))
    said = capsys.readouterr().err
    assert said.count("dynamics at step 4: 100% of the tokens are hidden") == (mode == "warn")
    assert not (tmp_path / "repairs.jsonl").exists()
    assert saved_steps(tmp_path) == [STEPS]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stop", [3, 5, *(pytest.param(stop, marks=SLOW) for stop in (0, 1, 4, 9, 13))])
def test_killed_between_two_steps(tmp_path: Path, whole: tuple[Path, Pretraining], stop: int) -> None:
    config, root = over_masked(), tmp_path / "killed"
    seen = 0

    def source(first: int) -> Iterator[Crops]:
        nonlocal seen
        for views in tiny_batches(config, tiny_plan(config, STEPS), first):
            if seen == stop and not root.exists():
                shutil.copytree(tmp_path / "run", root)
            seen += 1
            yield views

    train(tmp_path / "run", config, source)
    task = train(root, config)
    same_run(root, whole[0])
    assert_same(task.state.state_dicts(), whole[1].state.state_dicts())


class Killed(BaseException):
    """Ends a training where it is, as a kill does."""


MOMENTS: list[tuple[Any, str, bool]] = [
    (saving, "keep_abandoned", True),
    (pretraining, "write_repairs", True),
    (saving.CheckpointStore, "discard", True),
]


LATER: list[tuple[Any, str, bool]] = [
    (saving, "keep_abandoned", False),
    (pretraining, "write_repairs", False),
    (pretraining, "write_atomic", True),
]


@pytest.mark.parametrize("moment", [*MOMENTS, *(pytest.param(moment, marks=SLOW) for moment in LATER)], ids=str)
def test_killed_while_going_back(
    tmp_path: Path, whole: tuple[Path, Pretraining], monkeypatch: pytest.MonkeyPatch, moment: tuple[Any, str, bool]
) -> None:
    owner, name, after = moment
    act = getattr(owner, name)

    def killed(*words: Any, **more: Any) -> Any:
        if after:
            act(*words, **more)
        raise Killed

    config = over_masked()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            train(tmp_path, config)
    task = train(tmp_path, config)
    same_run(tmp_path, whole[0])
    assert_same(task.state.state_dicts(), whole[1].state.state_dicts())


def test_a_step_after_a_repair_is_replayed(whole: tuple[Path, Pretraining]) -> None:
    root, _ = whole
    task = task_of(root, over_masked())
    again = Replay(task, task.intervals, lambda: weights(task))
    again.steps(task.batches(0), 8)
    row = again.rows[8].row
    assert row is not None
    recorded = next(row for row in rows(root) if row["step"] == 8)
    assert {key: recorded[key] for key, value in row.items() if value is not None} == {
        key: value for key, value in row.items() if value is not None
    }
    assert recorded["repairs"] == 1


def a_repair(back: int, number: int = 1, **changed: tuple[float | None, float | None]) -> Repair:
    keys = {"lr": "optimizer.lr", "momentum": "objective.teacher_momentum", "clip": "optimizer.clip"}
    return Repair(number, "lost", "", back, back + 5, back, {keys[key]: pair for key, pair in changed.items()})


def test_knobs_count_from_the_step_gone_back_to() -> None:
    config = tiny_config()
    plan = tiny_plan(config, 20)
    repairs = [a_repair(8, lr=(1.0, 0.25), clip=(3.0, 1.0)), a_repair(4, 2, lr=(0.25, 0.0625), momentum=(0.9, 0.975))]
    assert effective_from(repairs) == [4, 4]
    assert moved(config, plan, repairs, 3) == (config, plan)
    now, then = moved(config, plan, repairs, 4)
    assert then.lr == plan.lr / 16
    assert then.teacher_momentum == 0.975
    assert now.optimizer.clip == 1.0
    assert step_values(then, now, 10).lr < step_values(plan, config, 10).lr


def test_the_cause_chooses_the_knob() -> None:
    config = tiny_config()
    sound = replace(knobs_of(config, tiny_plan(config, 1000)), teacher_momentum=0.99)
    assert moves("lost", sound, number=1) == {"optimizer.lr": (sound.lr, sound.lr / 4)}
    hot = replace(sound, teacher_temp=0.1)
    assert list(moves("uniform", hot, number=1)) == ["objective.teacher_temp"]
    assert list(moves("few-prototypes", replace(sound, center_momentum=0.9999), number=1)) == [
        "objective.center_momentum"
    ]
    quick = moves("lost", replace(sound, teacher_momentum=0.9, teacher_momentum_end=0.9), number=1)
    assert quick == {"objective.teacher_momentum": (0.9, 0.975), "objective.teacher_momentum_end": (0.9, 0.975)}
    assert moves("lost", replace(sound, clip=None), number=1)["optimizer.clip"] == (None, 1.0)
    fast = replace(sound, lr=0.03)
    assert moves("constant", fast, number=1) == {"optimizer.lr": (0.03, 0.002)}
    assert moves("constant", replace(fast, clip=None), number=2)["optimizer.lr"] == (0.03, 0.002)
    second = moves("lost", sound, number=2)
    assert second["optimizer.lr"] == (sound.lr, sound.lr / 4)
    assert second["objective.teacher_momentum"][1] == pytest.approx(0.9975)
    assert moves("over-masked", replace(sound, eligible_fraction=0.5, mask_probability=1.0), number=1) == {}
