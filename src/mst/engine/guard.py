"""A step is done whole or not at all: what was half done is taken back, and what cannot be is never saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from mst.engine.task import StepReport

Report = TypeVar("Report", bound=StepReport)


class StepGuard:
    """Watches the steps of one training.

    Attributes:
        half_done: whether a step has begun that is neither finished nor taken back.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        """Watch networks with these running statistics; parameters change in a step's last part only."""
        self._buffers = buffers
        self.half_done = False

    def gradients(self, compute: Callable[[], Report]) -> Report:
        """Return what `compute` returns: losses and gradients.

        Where they are not finite, or cannot be had (out of memory, an interrupt), the buffers are as before.
        After a return the step counts as half done until the caller says otherwise.
        """
        before = [buffer.clone() for buffer in self._buffers]
        self.half_done = True
        try:
            report = compute()
        except BaseException:
            self._put_back(before)
            self.half_done = False
            raise
        if report.skipped:
            self._put_back(before)
        return report

    def _put_back(self, before: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, before, strict=True):
            buffer.copy_(value)
