"""One step does what the paper says, in its order; a bad one does nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mst.config.schema import RunConfig, RunPlan
from mst.objective.dino import updated_center
from mst.objective.draws import StepDraws
from mst.objective.mst import mst_losses
from mst.objective.records import ObjectiveValues
from mst.train.schedule import StepValues
from mst.train.state import TrainState
from mst.train.step import StepReport, train_step
from mst.views.normalise import as_views
from mst.views.record import Views
from train.tiny_run import tiny_batches, tiny_config, tiny_plan, tiny_state

VALUES = StepValues(lr=1e-3, weight_decay=0.1, teacher_temp=0.05, teacher_momentum=0.9, freeze_last_layer=False)


def prepared(**sections: dict[str, Any]) -> tuple[RunConfig, RunPlan, TrainState, list[Views]]:
    config = tiny_config(**sections)
    plan = tiny_plan(config)
    parts = [crops for crops, _ in zip(tiny_batches(config, plan), range(config.train.accumulate), strict=False)]
    return (
        config,
        plan,
        tiny_state(config, plan),
        [as_views(crops, plan.mean, plan.std, torch.device("cpu")) for crops in parts],
    )


def step(
    state: TrainState, parts: list[Views], values: StepValues, config: RunConfig, plan: RunPlan, **options: Any
) -> StepReport:
    return train_step(state, parts, values, config, plan, **{"dtype": torch.float32, **options})


def test_the_step_is_the_written_out_one() -> None:
    config, plan, state, (views,) = prepared(model={"drop_path": 0.0})
    pair = copy.deepcopy(state.pair)
    step(state, [views], VALUES, config, plan)

    objective = ObjectiveValues.from_config(config.objective, teacher_temp=VALUES.teacher_temp)
    output = mst_losses(pair, views, torch.zeros(1, 24), objective, StepDraws(0, 0, range(8), 8))
    output.losses.total.backward()
    for mine, (name, other) in zip(state.pair.student.parameters(), pair.student.named_parameters(), strict=True):
        if not other.requires_grad:
            continue
        gradient = other.grad * min(1.0, 3.0 / (other.grad.norm().item() + 1e-6))
        decay = 0.0 if other.ndim == 1 or name.endswith(".bias") else 0.1
        adam = gradient / (gradient.abs() + 1e-8)  # the first step of Adam is the gradient's sign
        torch.testing.assert_close(mine, other * (1 - 1e-3 * decay) - 1e-3 * adam, rtol=1e-4, atol=2e-6)
    for mine, before, student in zip(
        state.pair.teacher.parameters(), pair.teacher.parameters(), state.pair.student.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, 0.9 * before + 0.1 * student)
    torch.testing.assert_close(state.center, updated_center(torch.zeros(1, 24), output.teacher_logits, 0.9))


def test_accumulation_is_the_whole_batch() -> None:
    sections = {"model": {"drop_path": 0.0}, "objective": {"strategy": "none"}}
    config, plan, whole, (views,) = prepared(**sections)
    halves = [
        Views(views.global_crops[:, part], views.local_crops[:, part], views.indices[part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    parts = copy.deepcopy(whole)
    one, two = step(whole, [views], VALUES, config, plan), step(parts, halves, VALUES, config, plan)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-3)
    assert one.indices.tolist() == two.indices.tolist()
    torch.testing.assert_close(one.features, two.features)
    torch.testing.assert_close(whole.center, parts.center)
    moments = [
        {key: entry["exp_avg"] for key, entry in state.optimizer.state_dict()["state"].items()}
        for state in (whole, parts)
    ]
    torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", ["attention_low", "attention_hint", "block", "random"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_masks_and_stochastic_depth_do_not_depend_on_accumulation(strategy: str, share: float) -> None:
    """In float64 the weights differ by the rounding of sums only: the same masks, the same branches left out."""
    sections = {
        "model": {"drop_path": 0.4},
        "objective": {"strategy": strategy, "masked_sample_share": share, "mask_probability": 0.6},
    }
    config, plan, whole, (views,) = prepared(**sections)
    found = []
    for bounds in ([(0, 8)], [(0, 4), (4, 8)], [(0, 1), (1, 6), (6, 8)]):
        state = copy.deepcopy(whole)
        parts = [Views(views.global_crops[:, a:b], views.local_crops[:, a:b], views.indices[a:b]) for a, b in bounds]
        report = step(state, parts, VALUES, config, plan, statistics=True)
        found.append((report, [parameter.detach() for parameter in state.pair.student.parameters()]))
    (one, weights), *others = found
    assert 0 < one.statistics["masked_share"] < 1
    for report, own in others:
        assert report.loss == pytest.approx(one.loss, rel=1e-5)
        assert report.statistics["masked_share"] == pytest.approx(one.statistics["masked_share"], rel=1e-6)
        torch.testing.assert_close(own, weights, rtol=1e-3, atol=2e-4)


def test_a_step_leaves_the_global_generator_alone() -> None:
    config, plan, state, (views,) = prepared(model={"drop_path": 0.4})
    before = torch.default_generator.get_state()
    step(state, [views], VALUES, config, plan)
    assert torch.equal(torch.default_generator.get_state(), before)


def test_a_frozen_last_layer_keeps_still_and_the_rest_moves() -> None:
    config, plan, state, parts = prepared(model={"norm_last_layer": False})
    before = copy.deepcopy(state.pair.student.head)
    frozen = StepValues(**{**vars(VALUES), "freeze_last_layer": True})
    step(state, parts, frozen, config, plan)
    assert torch.equal(before.prototypes, state.pair.student.head.prototypes)
    assert torch.equal(before.gain, state.pair.student.head.gain)
    assert not torch.equal(before.mlp[0].weight, state.pair.student.head.mlp[0].weight)


def test_a_frozen_backbone_keeps_still_and_head_decoder_and_mask_token_move() -> None:
    config, plan, state, parts = prepared()
    before = copy.deepcopy(state.pair)
    step(state, parts, StepValues(**{**vars(VALUES), "freeze_backbone": True}), config, plan)
    for name, parameter in state.pair.student.backbone.model.named_parameters():
        assert torch.equal(parameter, before.student.backbone.model.get_parameter(name)), name
    assert not torch.equal(before.student.backbone.mask_token, state.pair.student.backbone.mask_token)
    assert not torch.equal(before.student.head.mlp[0].weight, state.pair.student.head.mlp[0].weight)
    moved = zip(before.decoder.parameters(), state.pair.decoder.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_changes_nothing(where: str) -> None:
    config, plan, state, parts = prepared(model={"head_norm": "batch"}, train={"accumulate": 2})
    step(state, parts, VALUES, config, plan)
    before = copy.deepcopy(state.state_dicts())
    if where == "loss":
        parts[1].global_crops[0, 0, 0, 0, 0] = torch.nan
    else:
        hook = state.pair.student.backbone.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    report = step(state, parts, VALUES, config, plan)
    assert report.skipped
    torch.testing.assert_close(before, state.state_dicts(), rtol=0, atol=0)
    if where == "gradient":
        assert torch.isfinite(torch.tensor(report.loss))
        hook.remove()
        assert not step(state, parts, VALUES, config, plan).skipped


def test_draws_come_from_seed_and_step_only() -> None:
    def losses(seed: int, number: int, noise: int) -> float:
        config, plan, state, parts = prepared(model={"drop_path": 0.5}, runtime={"seed": seed})
        state.step = number
        torch.rand(noise)
        before = torch.get_rng_state()
        report = step(state, parts, VALUES, config, plan)
        assert torch.equal(torch.get_rng_state(), before)
        return report.loss

    assert losses(0, 0, 1) == losses(0, 0, 2)
    assert len({losses(0, 0, 1), losses(0, 1, 1), losses(0, 2, 1)}) == 3


def test_bf16_keeps_weights_and_state_in_float32() -> None:
    config, plan, state, parts = prepared()
    report = step(state, parts, VALUES, config, plan, dtype=torch.bfloat16, statistics=True)
    assert {p.dtype for p in state.pair.parameters()} == {torch.float32}
    assert state.center.dtype == torch.float32
    assert not report.skipped
    exact = step(prepared()[2], parts, VALUES, config, plan, statistics=True)
    assert report.loss == pytest.approx(exact.loss, rel=0.05)


def test_statistics_only_when_asked_for() -> None:
    config, plan, state, parts = prepared()
    assert step(state, parts, VALUES, config, plan).statistics == {}
    names = {"teacher_entropy", "marginal_entropy", "masked_share", "psnr_masked", "psnr_visible", "psnr_fill"}
    assert step(state, parts, VALUES, config, plan, statistics=True).statistics.keys() == names
