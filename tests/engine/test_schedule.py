"""Learning rates at the steps that matter, and settings that make no sense."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mst.engine.schedule import Checkpointing, LoopSettings, Schedule, learning_rate
from mst.errors import UsageError


def rates(schedule: Schedule, steps: int, warmup: int = 0, min_lr: float = 0.0) -> list[float]:
    settings = LoopSettings(steps, 2, lr=1.0, warmup_steps=warmup, schedule=schedule, min_lr=min_lr)
    return [learning_rate(step, settings) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "steps", "poly"])
def test_warm_up_learns_from_the_first_step_on(schedule: Schedule) -> None:
    assert rates(schedule, 60, warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_steps_are_the_1x_schedule() -> None:
    values = rates("steps", 60)
    assert (values[39], values[40], values[54], values[55]) == pytest.approx((1.0, 0.1, 0.1, 0.01))


def test_cosine_and_poly_end_at_the_least_rate() -> None:
    cosine, poly = rates("cosine", 11, min_lr=0.2), rates("poly", 11, min_lr=0.2)
    assert (cosine[0], cosine[5], cosine[-1]) == pytest.approx((1.0, 0.6, 0.2))
    assert (poly[0], poly[5], poly[-1]) == pytest.approx((1.0, 0.2 + 0.8 * 0.5**0.9, 0.2))
    assert cosine == sorted(cosine, reverse=True)
    assert rates("cosine", 1) == [1.0]
    assert rates("cosine", 2, warmup=2) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"batch_size": -2}, "--batch-size -2: must be at least 1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"row_every": 0}, "row_every 0: must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every 0: must be at least 1"),
        ({"max_bad_steps": 0}, "max_bad_steps 0: must be at least 1"),
        ({"lr": 0.0}, "--lr 0: must be above 0"),
        ({"lr": math.nan}, "--lr nan: must be above 0"),
        ({"clip_norm": -0.5}, "--clip-norm -0.5: must be above 0"),
        ({"warmup_steps": -1}, "--warmup-steps -1: must be at least 0"),
        ({"min_lr": -1e-6}, "--min-lr -1e-06: must be at least 0"),
        ({"batch_size": 3, "accumulate": 4}, "--accumulate 4: must be at most --batch-size 3"),
    ],
)
def test_the_value_that_makes_no_sense_is_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        LoopSettings(**{"steps": 1, "batch_size": 1, "lr": 1.0, **wrong})  # type: ignore[arg-type]
    assert str(refused.value) == message


def test_checkpoints_have_a_distance() -> None:
    with pytest.raises(UsageError, match="--checkpoint-every 0"):
        Checkpointing("x", 0)


def test_a_lengthened_training_keeps_its_first_rates_and_states_the_others() -> None:
    short = LoopSettings(steps=20, batch_size=1, lr=1.0, warmup_steps=4, min_lr=0.01)
    longer = replace(short, steps=50, earlier_ends=(20,))
    assert [learning_rate(step, longer) for step in range(20)] == [learning_rate(step, short) for step in range(20)]
    added = LoopSettings(steps=30, batch_size=1, lr=0.5, warmup_steps=3, min_lr=0.01)
    assert [learning_rate(20 + step, longer) for step in range(30)] == [
        learning_rate(step, added) for step in range(30)
    ]
    assert learning_rate(49, longer) == pytest.approx(0.01)
    twice = replace(short, steps=60, earlier_ends=(20, 50))
    assert [learning_rate(step, twice) for step in range(50)] == [learning_rate(step, longer) for step in range(50)]
    assert max(learning_rate(step, twice) for step in range(50, 60)) == 0.5
