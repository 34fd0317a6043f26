"""Time the optimizer steps of a training tool from outside it: a global optimizer hook notes when each step ends.

The same few lines run inside our own trainer and inside another tool's process, so both are timed by one clock with
everything included: reading, augmenting, forward, backward, update, logging. Only torch and the standard library.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


class StepClock:
    """Note the time at which every optimizer step of this process ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        register_optimizer_step_post_hook(self._note)

    def _note(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self, warmup: int) -> list[float]:
        """Return the durations of the steps after the first `warmup`."""
        return [b - a for a, b in zip(self.ends[warmup:], self.ends[warmup + 1 :], strict=False)]

    def report(self, warmup: int, batch_size: int) -> str:
        """Return one JSON line: images/s over all timed steps, the median step and the peak memory in GB.

        The sum, not the median step, decides images/s: a loader that stalls every few steps must not look fast.
        """
        seconds = self.seconds(warmup)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        row = {
            "steps": len(seconds),
            "images_per_second": batch_size * len(seconds) / sum(seconds),
            "median_step_seconds": statistics.median(seconds),
            "peak_memory_gb": own,
            "largest_worker_gb": workers,
        }
        return "RESULT " + json.dumps(row)
