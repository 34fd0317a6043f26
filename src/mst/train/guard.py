"""The guard of a start from trained weights: compares the k-NN accuracy of a run with that of its start."""

from __future__ import annotations

from dataclasses import dataclass

from mst.config.schema import RunConfig
from mst.runtime import logging
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

METRIC = "knn_top1"


@dataclass
class KnnGuard:
    """Watches one accuracy in percent.

    Attributes:
        drop: points below the start that are still in order.
        start: accuracy before the first step; None = it was never scored, nothing is watched.
    """

    drop: float
    start: float | None

    def observe(self, accuracy: float, step: int) -> str | None:
        """Take note of the accuracy at `step`; return what is wrong, and which knob to move, or None."""
        if step == 0:
            self.start = accuracy
        if self.start is None or self.start - accuracy <= self.drop:
            return None
        return (
            f"k-NN {accuracy:.1f} % at step {step}, {self.start:.1f} % at the start (more than --monitor.guard-drop "
            f"{self.drop:g} lost): lower --optimizer.lr or raise --schedule.freeze-backbone-epochs"
        )


def knn_guard(config: RunConfig, run: RunDir, *, step: int) -> KnnGuard | None:
    """Return the guard of a run at `step`; None where it did not start from trained weights, or wants none.

    The accuracy of the start is the row of step 0 in metrics.jsonl: the run's record is the only thing that knows it
    after a resume. A run that was not scored then is told so.
    """
    if config.monitor.guard == "off" or config.model.init_from is None:
        return None
    found = [row[METRIC] for row in read_jsonl(run.metrics) if row.get("step") == 0 and METRIC in row]
    if not found and step:
        logging.warn("the start was not scored, so --monitor.guard has nothing to compare k-NN with")
    return KnnGuard(config.monitor.guard_drop, found[0] if found else None)
