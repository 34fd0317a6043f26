"""What the screen says of the latest evaluation, beside that of the start: training must show whether it helps."""

from __future__ import annotations

from collections.abc import Mapping

from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

NAMES = {"knn_top1": "k-NN", "retrieval_top1": "retrieval"}
"""Metric of an evaluation -> its name on the screen; the first that is there is shown."""


class LatestScores:
    """The evaluation of step 0 and the latest one; after a resume from the run's rows.

    Args:
        run: its folder.
        step: steps that are done.
    """

    def __init__(self, run: RunDir, *, step: int) -> None:
        self._start: dict[str, float] = {}
        self._now: dict[str, float] = {}
        for row in read_jsonl(run.metrics):
            if isinstance(at := row.get("step"), int) and at <= step:
                self.observe(at, row)

    def observe(self, step: int, row: Mapping[str, object]) -> None:
        """Take note of the row of an evaluation after `step` steps; rows without scores say nothing."""
        found = {key: float(value) for key in NAMES if isinstance(value := row.get(key), int | float)}
        if step == 0:
            self._start |= found
        self._now |= found

    def __str__(self) -> str:
        """Return `k-NN 62.1 % (start 55.3)`; "" where nothing was scored."""
        for key, name in NAMES.items():
            if key in self._now:
                start = f" (start {self._start[key]:.1f})" if key in self._start else ""
                return f"{name} {self._now[key]:.1f} %{start}"
        return ""
