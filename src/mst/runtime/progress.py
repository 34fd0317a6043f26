"""Progress of a running training: a bar on a terminal, elsewhere a plain line from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mst.runtime import logging

SECONDS_BETWEEN_LINES = 20.0


class Throughput:
    """Images per second, and the share of the time spent waiting for batches, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._images, self._wait, self._busy = 0, 0.0, 0.0

    def add(self, *, images: int, wait: float, busy: float) -> None:
        """Count one step: seconds of waiting for its batch, seconds of computing."""
        self._images += images
        self._wait += wait
        self._busy += busy

    def row(self) -> dict[str, float]:
        """Return `images_per_second` and `data_wait` (0 to 1)."""
        seconds = max(self._wait + self._busy, 1e-9)
        return {"images_per_second": self._images / seconds, "data_wait": self._wait / seconds}

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of waiting for batches, and all seconds."""
        return self._wait, self._wait + self._busy


class _TwoLines(Progress):
    """The bar with its times, and below it the numbers, so that both fit into 80 columns; longer ones are folded."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["numbers"])


class TrainingProgress:
    """A context manager around the loop."""

    def __init__(
        self,
        title: str,
        describe: Callable[[Mapping[str, float]], str],
        *,
        step: int,
        total_steps: int,
        shown: bool = True,
    ) -> None:
        """Start at `step`; `describe` turns a row of metrics into a few words, on a bar in lines."""
        self._describe, self._shown, self._total = describe, shown, total_steps
        self._timed_from: tuple[int, float] | None = None  # a step and when it was shown
        self._shown_step, self._last_line = step, 0.0
        self._bar = _TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=logging.console,
            disable=not (shown and logging.console.is_terminal),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(title, total=total_steps, completed=step, numbers="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show the state after `step` steps; `numbers` has the keys of a row of metrics.

        The time left follows from what came after the first call: before it are the start and what is measured of
        fresh weights. A training that went back to an earlier step is timed anew from there.
        """
        text = self._describe(numbers)
        self._bar.update(self._task, completed=step, numbers=text)
        now = time.perf_counter()
        if self._timed_from is None or step < self._shown_step:
            self._timed_from = step, now
        self._shown_step = step
        if (
            self._shown
            and self._bar.disable
            and (step == self._total or now - self._last_line >= SECONDS_BETWEEN_LINES)
        ):
            self._last_line = now
            first, started = self._timed_from
            text, done = text.replace("\n", "  "), step - first
            left = f"  eta {clock((now - started) / done * (self._total - step))}" if done else ""
            logging.info(f"step {step}/{self._total}  {text}{left}")


def describe_loss(numbers: Mapping[str, float]) -> str:
    """Write the loss, the learning rate and the speed in one line."""
    return f"loss {numbers['loss']:.3f}  {describe_speed(numbers)}"


def describe_speed(numbers: Mapping[str, float]) -> str:
    """Write the learning rate and the speed."""
    rate, wait = numbers["images_per_second"], 100 * numbers["data_wait"]
    return f"lr {numbers['lr']:.1e}  {rate:.0f} img/s  wait {wait:.0f}%"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
