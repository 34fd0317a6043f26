"""Learning rates at the steps that matter, and settings that make no sense."""

from __future__ import annotations

import pytest

from mst.errors import UsageError
from mst.finetune.schedule import Checkpointing, LoopSettings, Schedule, learning_rate


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


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"clip_norm": 0.0}, {"batch_size": 3, "accumulate": 2}):
        with pytest.raises(UsageError):
            LoopSettings(**{"steps": 1, "batch_size": 1, "lr": 1.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--checkpoint-every 0"):
        Checkpointing("x", 0)
