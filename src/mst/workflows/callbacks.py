"""What a user's code is told of a training while it runs: rows, start and end; its faults do not end the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mst.errors import StopTraining
from mst.parallel.world import World
from mst.runtime import logging


class Callback:
    """Base of a user's callbacks: override what is needed. Called in the first process only, between two steps.

    An exception in a callback is reported once, in a warning that names it, and this callback is not called again; the
    training goes on, so that a tracker that cannot be reached costs no run. To end a training on purpose raise
    `mst.StopTraining("why")`: what was learned is saved first, and `mst.pretrain` raises it.
    """

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Note that a training begins or goes on.

        Args:
            folder: of the run.
            config: its settings by section, as JSON types.
            plan: what was derived, as JSON types.
        """

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Note a row of metrics.jsonl, which has been written: `step`, and numbers by name.

        Rows of losses come every `monitor.every_steps` steps, those of k-NN with its own names every
        `monitor.knn_every_steps`; numbers that are not finite are None. A run that is resumed repeats rows of steps
        after its checkpoint.
        """

    def on_end(self, backbone: Path, metrics: Mapping[str, float]) -> None:
        """Note that the training is finished: the file of its backbone, and the last value of every metric."""

    def on_stop(self, error: BaseException) -> None:
        """Note that the training ended early: a signal, an error, `StopTraining`; what was learned is saved."""


class Callbacks(Callback):
    """Several callbacks as one, none of which can end the training by a fault."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._active = list(callbacks)

    def on_start(self, folder: Path, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Tell all."""
        self._tell("on_start", folder, config, plan)

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Tell all."""
        self._tell("on_row", row)

    def on_end(self, backbone: Path, metrics: Mapping[str, float]) -> None:
        """Tell all."""
        self._tell("on_end", backbone, metrics)

    def on_stop(self, error: BaseException) -> None:
        """Tell all."""
        self._tell("on_stop", error)

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in tuple(self._active) if World.current().first else ():
            try:
                getattr(callback, event)(*arguments)
            except StopTraining:
                if event in {"on_start", "on_row"}:
                    raise
            except Exception as error:
                self._active.remove(callback)
                logging.warn(
                    f"callback {type(callback).__name__}.{event} raised {type(error).__name__}: "
                    f"{' '.join(str(error).split())}: it is not called any more, the training goes on"
                )


NOBODY = Callbacks(())
