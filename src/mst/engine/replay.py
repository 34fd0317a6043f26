"""Steps of a training done again exactly as they were, with nothing written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mst.engine.guard import StepGuard
from mst.engine.inspection import BLOW_UP, Inspection, Rows, Watch, badness, largest_value
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
        """Return the microbatches of the next step."""
        return list(islice(batches, self._intervals.accumulate))

    def step(self, microbatches: list[Batch]) -> StepReport:
        """Do one step as the trainer does it: counts, means and statistics included."""
        task, state = self.task, self.task.state
        row_due = self._intervals.row_due(state.step + 1)
        report: StepReport = self._guard.gradients(lambda: task.gradients(microbatches, row_due=row_due))
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

    def inspect(self, microbatches: list[Batch], networks: Iterable[nn.Module], watch: Watch, rows: Rows) -> Inspection:
        """Do one step with hooks that only read, so that its numbers are those of the training.

        Args:
            microbatches: of the step.
            networks: to watch; modules that they share are watched once.
            watch: gets what is not finite; its hooks are taken away at the end.
            rows: gets the images; the caller says which of them are computed (`Rows.begin_microbatch`).
        """
        weight = largest_value(self._weights())
        for name, value in self._weights():
            watch.note(f"weight {name} before the step", value)
        for network in networks:
            watch.network(network)
            rows.network(network)
        try:
            report = self.step(microbatches)
        finally:
            watch.close()
            rows.close()
        for name, number in report.scalars().items():
            watch.note("the gradient norm (of all gradients)" if name == "grad_norm" else name, torch.tensor(number))
        for name, value in self._weights():
            watch.note(f"weight {name} after the step", value)
        gradient = max(watch.largest.items(), key=lambda item: badness(item[1])) if watch.largest else None
        return Inspection(report, watch.found, sorted(rows.bad), gradient, weight, largest_value(self._weights()))

    def _compare_weights(self, step: int) -> None:
        before, (name, after) = self._size[1], largest_value(self._weights())
        if self.growth is None and math.isfinite(before) and not after <= BLOW_UP * max(before, 1.0):
            self.growth = WeightGrowth(step, name, before, after)
        self._size = name, after
