"""A checkpoint of something else changes nothing in the state that it is offered to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mst.errors import CheckpointError
from mst.train.state import TrainState
from train.tiny_run import tiny_config, tiny_plan, tiny_state


def tiny() -> TrainState:
    config = tiny_config()
    return tiny_state(config, tiny_plan(config))


def other(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(parts: dict[str, Any]) -> None:
        parts[part][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: parts.pop("teacher"), "teacher is missing"),
        (lambda parts: parts.pop("decoder"), "decoder is missing"),
        (lambda parts: parts.pop("progress"), "progress is missing"),
        (
            lambda parts: parts["optimizer"]["state"].update({0: {"step": torch.ones(())}}),
            "optimizer state of parameter 0",
        ),
        (other("student", "backbone.mask_token", torch.zeros(3)), r"student backbone\.mask_token has shape \[3\]"),
        (other("progress", "center", torch.zeros(1, 9)), r"center has shape \[1, 9\] instead of \[1, 24\]"),
        (other("progress", "center", torch.full((1, 24), float("nan"))), "center holds NaN"),
        (other("progress", "features", {"rows": torch.zeros(2, 2), "seen": 0}), "features rows has shape"),
        (other("progress", "features", {"rows": torch.zeros(2048, 32), "seen": -1}), "seen is -1"),
        (other("progress", "means", {"sums": {"loss": "x"}, "count": 1}), "loss is 'x'"),
        (other("progress", "means", {"sums": {"loss": 1.0}, "count": 0}), "count is 0 beside 1 sums"),
        (other("progress", "collapse", {"streak": 1}), "streak is 1: must be a whole number from 0 to 0"),
        (other("progress", "step", 2.5), r"step is 2\.5"),
        (other("progress", "bad_streak", 10), "bad_streak is 10: must be a whole number from 0 to 0"),
        (other("progress", "seconds", float("nan")), "seconds is nan"),
    ],
)
def test_refused_and_unchanged(change: Callable[[dict[str, Any]], None], said: str) -> None:
    state = tiny()
    parts = copy.deepcopy(state.state_dicts())
    parts["student"]["backbone.model.norm.bias"] += 1  # would show if it were taken over
    change(parts)
    before = copy.deepcopy(state.state_dicts())
    with pytest.raises(CheckpointError, match=f"does not fit this run's networks: .*{said}") as caught:
        state.load(parts)
    assert "\n" not in str(caught.value)
    for name in ("student", "teacher"):
        assert all(torch.equal(value, before[name][key]) for key, value in state.state_dicts()[name].items())
