"""A step that is done again is the step that was done, and what is not finite in it is named with its image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mst.config.schema import RunConfig
from mst.engine.replay import Replay
from mst.runtime.storage.rundir import RunDir
from mst.train.pretraining import Pretraining
from mst.train.replay import Inspection, inspect_step, weights
from mst.views.normalise import normalise
from mst.views.record import Crops
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state


def task_of(config: RunConfig, root: Path) -> Pretraining:
    plan = tiny_plan(config)

    def source(first: int) -> Iterator[Crops]:
        return tiny_batches(config, plan, first)

    return Pretraining(
        tiny_state(config, plan), source, config=config, plan=plan, run=RunDir(root), dtype=torch.float32
    )


def inspected(
    config: RunConfig, root: Path, step: int, spoil: Callable[[Pretraining], None] | None = None
) -> Inspection:
    task = task_of(config, root)
    again = Replay(task, task.intervals, lambda: weights(task))
    batches = task.batches(0)
    again.steps(batches, step - 1)
    if spoil is not None:
        spoil(task)
    return inspect_step(task, again, again.take(batches))


@pytest.mark.parametrize("sections", [{}, {"train": {"accumulate": 2}}, {"runtime": {"replicas": 2}}])
def test_hooks_change_no_number(tmp_path: Path, sections: dict[str, dict[str, int]]) -> None:
    config = tiny_config(**sections)
    plain = task_of(config, tmp_path)
    again = Replay(plain, plain.intervals, lambda: weights(plain))
    report = again.steps(plain.batches(0), 3)
    found = inspected(config, tmp_path, 3)
    assert report is not None
    assert found.report.scalars() == report.scalars()
    assert not found.found
    assert not found.images
    assert found.weight_after == max(
        ((name, value.abs().max().item()) for name, value in weights(plain)), key=lambda item: item[1]
    )


@pytest.mark.parametrize(
    ("replicas", "accumulate", "norm"), [(1, 1, "none"), (2, 2, "none"), (2, 1, "none"), (1, 1, "batch")]
)
def test_a_bad_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas: int, accumulate: int, norm: str
) -> None:
    config = tiny_config(train={"accumulate": accumulate}, model={"head_norm": norm}, runtime={"replicas": replicas})
    task = task_of(config, tmp_path)
    parts = list(tiny_batches(config, task.plan))[:accumulate]
    bad = parts[-1].global_crops[1, -2].float()  # crop 1 of the last image but one of the batch

    def infinite(pixels: Tensor, mean: object, std: object) -> Tensor:
        seen = normalise(pixels, mean, std)  # type: ignore[arg-type]
        if pixels.shape[-2:] == bad.shape[-2:]:
            seen[(pixels == bad).flatten(2).all(dim=2)] = torch.inf
        return seen

    monkeypatch.setattr("mst.views.normalise.normalise", infinite)
    found = inspect_step(task, Replay(task, task.intervals, lambda: weights(task)), parts)
    assert found.report.skipped
    assert found.found[0].name == "pixels of global crops"
    assert found.images == [6]
    assert found.indices[6] == 6
    assert found.found[1].name.startswith("output of teacher.backbone")


def test_a_bad_weight_is_the_first_tensor(tmp_path: Path) -> None:
    def spoil(task: Pretraining) -> None:
        with torch.no_grad():
            task.state.pair.student.backbone.model.blocks[1].attn.proj.weight[0, 0] = torch.nan

    found = inspected(tiny_config(), tmp_path, 2, spoil)
    assert found.found[0].name == "weight student.backbone.model.blocks.1.attn.proj.weight before the step"
    assert found.found[0].bad == 1
    assert len(found.images) == 8


def test_a_huge_rate_is_seen_in_the_step_that_took_it(tmp_path: Path) -> None:
    config = tiny_config(optimizer={"lr": 1e9}, schedule={"warmup_epochs": 0})
    task = task_of(config, tmp_path)
    again = Replay(task, task.intervals, lambda: weights(task))
    again.steps(task.batches(0), 4)
    assert again.growth is not None
    assert again.growth.step == 1
    assert again.growth.before < 10
    assert again.growth.after > 1e6
