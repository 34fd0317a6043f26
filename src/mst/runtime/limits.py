"""Limits of numbers that users give: one line with the option, the value received and what is allowed."""

from __future__ import annotations

import math

from mst.errors import UsageError


def check_numbers(
    record: object, *names: str, least: float | None = None, above: float | None = None, most: float | None = None
) -> None:
    """Refuse fields of a record of options that lie outside their limits.

    Args:
        record: its fields are numbers, lists of numbers (each counts, and there must be one), or None, which passes.
        names: the fields; the option `--batch-size` is the field `batch_size`.
        least: each number must be at least this.
        above: each number must be above this.
        most: each number must be at most this.

    Raises:
        UsageError: naming the option; also for nan and inf.
    """
    allowed = _described(least, above, most)
    for name in names:
        option, value = f"--{name.replace('_', '-')}", getattr(record, name)
        if value == ():
            raise UsageError(f"{option} without a number: each must be {allowed}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{option} {number}: must be a finite number")
            if number is not None and not _inside(number, least, above, most):
                raise UsageError(f"{option} {number}: must be {allowed}")


def _inside(number: float, least: float | None, above: float | None, most: float | None) -> bool:
    return (least is None or number >= least) and (above is None or number > above) and (most is None or number <= most)


def _described(least: float | None, above: float | None, most: float | None) -> str:
    """Return limits in words: `between 0 and 1`, `above 0 and at most 1`, `at least 1`."""
    if least is not None and most is not None:
        return f"between {least:g} and {most:g}"
    bounds = (("at least", least), ("above", above), ("at most", most))
    return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
