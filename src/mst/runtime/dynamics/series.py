"""The rows of a run as columns of numbers, and means over windows that look back only.

What is said of a row depends on it and the rows before it, so it is the same while a run is on and in its report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Rows of metrics with a self-distillation loss or restoration, in the order of their steps.

    Attributes:
        rows: as metrics.jsonl has them.
        total: steps of the whole run.
    """

    rows: Sequence[Mapping[str, Any]]
    total: int

    @cached_property
    def steps(self) -> Column:
        """Steps of the rows [R]."""
        return np.array([float(row["step"]) for row in self.rows])

    def column(self, key: str) -> Column:
        """Return the numbers under a key [R]; NaN where a row has none."""
        found = [row.get(key) for row in self.rows]
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in found]
        return np.array([float(value) if ok else np.nan for value, ok in zip(found, numbers, strict=True)])  # type: ignore[arg-type]

    def past(self, share: float, *, rows: int = 1) -> NDArray[np.int64]:
        """Return for each row the first row of a window that ends with it [R].

        The window is `share` of the run long, but holds at least `rows` rows where there are so many.
        """
        first = np.searchsorted(self.steps, self.steps - share * self.total, side="right")
        return np.minimum(first, np.maximum(np.arange(len(self.steps)) - (rows - 1), 0))

    def mean(self, column: Column, share: float, *, rows: int = 3) -> Column:
        """Return the mean over the window that ends with each row [R]; NaN where all of it is."""
        sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(column))])
        counts = np.concatenate([[0], np.cumsum(np.isfinite(column))])
        first, last = self.past(share, rows=rows), np.arange(1, len(column) + 1)
        number = counts[last] - counts[first]
        return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)
