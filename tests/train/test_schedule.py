"""Schedules against tables of one value per step, at their ends, and as a run uses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.train.schedule import cosine, linear_warmup, linear_warmup_cosine, step_values
from reference import schedules
from train.tiny_run import tiny_config, tiny_plan

VALUES = st.floats(0, 1)
STEPS = st.integers(1, 40)


@given(VALUES, VALUES, STEPS, st.integers(0, 50))
def test_schedules_equal_their_tables(start: float, end: float, steps: int, warmup: int) -> None:
    assert [cosine(i, start=start, end=end, total_steps=steps) for i in range(steps)] == pytest.approx(
        schedules.cosine(start, end, steps)
    )
    assert [linear_warmup(i, start=start, end=end, warmup_steps=warmup) for i in range(steps)] == pytest.approx(
        schedules.linear_then_constant(start, end, steps, warmup)
        if warmup <= steps
        else schedules.linear(start, end, warmup)[:steps]
    )
    if warmup <= steps:
        found = [
            linear_warmup_cosine(i, peak=start, end=end, warmup_steps=warmup, total_steps=steps) for i in range(steps)
        ]
        assert found == pytest.approx(schedules.linear_warmup_cosine(start, end, steps, warmup))


@given(VALUES, VALUES, STEPS)
def test_the_end_value_stays(start: float, end: float, steps: int) -> None:
    assert cosine(steps - 1, start=start, end=end, total_steps=steps) == end
    assert cosine(steps + 7, start=start, end=end, total_steps=steps) == end


def test_what_a_run_uses() -> None:
    config = tiny_config(objective={"teacher_temp": 0.07, "teacher_temp_start": 0.04, "teacher_momentum": 0.9})
    plan = tiny_plan(config, 50).model_copy(
        update={"warmup_steps": 10, "teacher_temp_warmup_steps": 20, "freeze_last_layer_steps": 5}
    )
    first, middle, last = (step_values(plan, config, step) for step in (0, 10, 49))
    assert (first.lr, middle.lr, last.lr) == (0.0, plan.lr, config.optimizer.min_lr)
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.4))
    assert (first.teacher_temp, middle.teacher_temp, last.teacher_temp) == pytest.approx((0.04, 0.055, 0.07))
    assert (first.teacher_momentum, last.teacher_momentum) == pytest.approx((0.9, 1.0))
    assert [step_values(plan, config, step).freeze_last_layer for step in (0, 4, 5)] == [True, True, False]
