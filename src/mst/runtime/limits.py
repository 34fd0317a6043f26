"""Limits of numbers that users give: one line with the option, the value received and what is allowed."""

from __future__ import annotations

import math

from mst.errors import UsageError

MOST = 10**9
"""Largest whole number of an option that has no limit of its own."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Limits of the absolute value of a number other than 0; float32 holds both."""
SEEDS = 2**63 - 1
SIDE, BATCH, WIDTH = 4096, 2**20, 2**16
MOST_OF = {
    **dict.fromkeys(("size", "stride", "short_sides", "long_side", "anchor_size"), SIDE),
    **dict.fromkeys(("batch_size", "forward_batch", "accumulate", "repeats"), BATCH),
    **dict.fromkeys(("channels", "head_dim"), WIDTH),
    **dict.fromkeys(("epochs", "warmup_epochs", "evaluate_epochs"), 10**6),
    **dict.fromkeys(("mixup", "cutmix"), 1000),
    **dict.fromkeys(("resize_ratio", "scales"), 100),
    **dict.fromkeys(("seed", "steps"), SEEDS),
    "blocks": 512,
    "workers": 256,
}
"""Largest number of the options of these names, in every command: more than anybody needs."""
SIDES = ("size", "stride")


def check_magnitude(name: str, number: object) -> None:
    """Refuse a number that is larger than anybody needs; what is no number passes.

    Args:
        name: the option as the field of a record: `batch_size` for `--batch-size`.
        number: its value, or one of its values.

    Raises:
        UsageError: naming the option, the number and what is allowed.
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    option, said = f"--{name.replace('_', '-')}", _shown(number)
    if isinstance(number, float) and not math.isfinite(number):
        raise UsageError(f"{option} {said}: must be a finite number")
    most = MOST_OF.get(name, MOST if isinstance(number, int) else LARGEST)
    if number > most:
        raise UsageError(f"{option} {said}: must be at most {most:.10g}")
    if number < -most or (name in SIDES and number < 1):
        raise UsageError(f"{option} {said}: must be at least {1 if name in SIDES else -most:.10g}")
    if number and abs(number) < SMALLEST:
        raise UsageError(f"{option} {said}: must be 0 or at least {SMALLEST:g} in size")


def _shown(number: float) -> str:
    text = str(number)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


def check_numbers(
    record: object, *names: str, least: float | None = None, above: float | None = None, most: float | None = None
) -> None:
    """Refuse fields of a record of options that lie outside their limits.

    Args:
        record: its fields are numbers, tuples of numbers (not empty; each is checked), or None, which passes.
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
            check_magnitude(name, number)
            if number is not None and not _inside(number, least, above, most):
                raise UsageError(f"{option} {number}: must be {allowed}")


def check_accumulate(batch_size: int, accumulate: int) -> None:
    """Refuse more microbatches than images of a step.

    Raises:
        UsageError: naming the option.
    """
    if accumulate > batch_size:
        raise UsageError(f"--accumulate {accumulate}: must be at most --batch-size {batch_size}")


def _inside(number: float, least: float | None, above: float | None, most: float | None) -> bool:
    return (least is None or number >= least) and (above is None or number > above) and (most is None or number <= most)


def _described(least: float | None, above: float | None, most: float | None) -> str:
    """Return limits in words: `between 0 and 1`, `above 0 and at most 1`, `at least 1`."""
    if least is not None and most is not None:
        return f"between {least:g} and {most:g}"
    bounds = (("at least", least), ("above", above), ("at most", most))
    return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
