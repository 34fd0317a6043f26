"""Limits of options: what passes, and the one line about what does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mst.errors import UsageError
from mst.runtime.limits import check_numbers


@dataclass(frozen=True)
class Options:
    batch_size: int = 4
    lr: float | None = None
    lrs: tuple[float, ...] = (0.5, 1.0)


def test_what_passes() -> None:
    check_numbers(Options(), "batch_size", "lr", "lrs", least=0.5)
    check_numbers(Options(), "lrs", above=0, most=1)
    check_numbers(Options(lrs=(1e-30, 0.0, 1e30)), "lrs", least=0)


@pytest.mark.parametrize(
    ("options", "limits", "said"),
    [
        (Options(batch_size=0), {"least": 1}, "--batch-size 0: must be at least 1"),
        (Options(batch_size=2), {"above": 0, "most": 1}, "--batch-size 2: must be above 0 and at most 1"),
        (Options(lr=0.0), {"above": 0}, "--lr 0.0: must be above 0"),
        (Options(lr=float("nan")), {"least": 0}, "--lr nan: must be a finite number"),
        (Options(batch_size=2), {"least": 0, "most": 1}, "--batch-size 2: must be between 0 and 1"),
        (Options(lrs=(0.5, -1.0)), {"above": 0}, "--lrs -1.0: must be above 0"),
        (
            Options(batch_size=10**400),
            {"least": 1},
            f"--batch-size 1{'0' * 19}... (401 characters): must be at most 1048576",
        ),
        (Options(lr=1e308), {"above": 0}, "--lr 1e+308: must be at most 1e+30"),
        (Options(lr=1e-308), {"above": 0}, "--lr 1e-308: must be 0 or at least 1e-30 in size"),
        (Options(lrs=()), {"above": 0}, "--lrs without a number: each must be above 0"),
    ],
)
def test_what_is_refused(options: Options, limits: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_numbers(options, "batch_size", "lr", "lrs", **limits)
    assert str(caught.value) == said
