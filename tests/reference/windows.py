"""Means over windows that look back, row by row."""

from __future__ import annotations

import math


def past_mean(steps: list[float], values: list[float], length: float, rows: int) -> list[float]:
    """Return for each row the mean of the finite values of the last `length` steps, but of `rows` rows at least."""
    found = []
    for last, end in enumerate(steps):
        within = [place for place in range(last + 1) if steps[place] > end - length]
        first = min(within[0], max(0, last - rows + 1))
        kept = [value for value in values[first : last + 1] if math.isfinite(value)]
        found.append(sum(kept) / len(kept) if kept else math.nan)
    return found
