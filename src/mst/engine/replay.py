"""Steps of a training done again exactly as they were, with nothing written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from mst.engine.guard import StepGuard
from mst.engine.inspection import BLOW_UP, largest_value
from mst.engine.task import Batch, Intervals, Remarks, StepReport, Task

Named = Callable[[], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class WeightGrowth:
    """The first step after which the weights were no longer of the size before it.

    Attributes:
        step: the step.
        name: the parameter with the largest value.
        before, after: largest absolute value of all weights before and after the step.
    """

    step: int
    name: str
    before: float
    after: float


class Replay:
    """Does a task's steps again, from the state that it is in.

    Attributes:
        rows: rows of metrics that fell due, by step.
        growth: the first step at which the weights blew up, or None.
    """

    def __init__(self, task: Task[Any], intervals: Intervals, weights: Named) -> None:
        self.task, self._intervals, self._weights = task, intervals, weights
        self.rows: dict[int, Remarks] = {}
        self.growth: WeightGrowth | None = None
        self._guard = StepGuard(task.buffers)
        self._size = largest_value(weights())

    def steps(self, batches: Iterator[Batch], count: int) -> StepReport | None:
        """Do `count` steps; return the last one's report."""
        report: StepReport | None = None
        for _ in range(count):
            report = self.step(self.take(batches))
        return report

    def take(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return the parts of the next step."""
        return list(islice(batches, self._intervals.accumulate))

    def step(self, parts: list[Batch]) -> StepReport:
        """Do one step as the trainer does it: counts, means and statistics included."""
        task, state = self.task, self.task.state
        row_due = self._intervals.row_due(state.step + 1)
        report: StepReport = self._guard.gradients(lambda: task.gradients(parts, row_due=row_due))
        if not report.skipped:
            task.apply(report)
        state.step += 1
        state.bad_steps, state.bad_streak = (
            (state.bad_steps + 1, state.bad_streak + 1) if report.skipped else (state.bad_steps, 0)
        )
        if row_due:
            self.rows[state.step] = task.after_step(report, row_due=True)
        else:
            task.after_step(report, row_due=False)
        self._compare_weights(state.step)
        return report

    def _compare_weights(self, step: int) -> None:
        before, (name, after) = self._size[1], largest_value(self._weights())
        if self.growth is None and math.isfinite(before) and not after <= BLOW_UP * max(before, 1.0):
            self.growth = WeightGrowth(step, name, before, after)
        self._size = name, after
