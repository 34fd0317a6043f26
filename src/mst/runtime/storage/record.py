"""The rows of a run: metrics.jsonl, TensorBoard and bad_steps.jsonl, the same after a resume as without one."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mst.runtime import logging
from mst.runtime.names import shown
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.results import append_jsonl, plain_json
from mst.runtime.storage.rundir import RunDir

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunRecord:
    """Appends rows that carry a `step`.

    Opening it for a run that has done `step` steps drops every row beyond: they are going to be written again.
    """

    def __init__(
        self, run: RunDir, *, step: int, tensorboard: bool, told: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        """Open the files of a run; `told` hears of every row of metrics after it is written."""
        self._told = told
        self._metrics = run.metrics
        self._bad_steps = bad_steps_file(run)
        for path in (self._metrics, self._bad_steps):
            drop_rows(path, beyond=step)
        self._events = run.tensorboard
        self._writer = _tensorboard_writer(run.tensorboard, step) if tensorboard else None

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row; numbers that are not finite become null, as JSON has no others."""
        row = plain_json(row)
        append_jsonl(self._metrics, row)
        if self._writer is not None:
            self._events.stat()  # raises here if it is gone; else a thread of the writer would
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(key, value, row["step"])
        if self._told is not None:
            self._told(row)

    def bad_step(self, row: Mapping[str, Any]) -> None:
        """Append what is needed to replay a skipped step."""
        append_jsonl(self._bad_steps, row)

    def flush(self) -> None:
        """Bring all rows to the disk, so that no checkpoint is newer than they are."""
        for path in (self._metrics, self._bad_steps):
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None and self._events.is_dir():
            self._writer.close()


def _told_elsewhere(trace: threading.ExceptHookArgs) -> None:
    """Print no traceback of the thread that writes events: its error is raised where the next row is written."""
    if not type(trace.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(trace)


def bad_steps_file(run: RunDir) -> Path:
    """Return where skipped steps are listed, with the positions of their images."""
    return run.root / "bad_steps.jsonl"


def drop_rows(path: Path, *, beyond: int) -> None:
    """Remove the rows whose `step` is larger than `beyond`, and a half-written one; the others stay as they are."""
    if not path.is_file():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if step_of(line) <= beyond)
    if kept != content:
        write_atomic(path, kept)


def step_of(line: bytes) -> float:
    """Return a row's step; infinity for half a row and a damaged one."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf


def _tensorboard_writer(folder: Path, step: int) -> SummaryWriter | None:
    """Return the writer of events; None, and a warning, where the folder has a name that TensorBoard cannot take."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        str(folder).encode()
    except UnicodeEncodeError:
        logging.warn(f"no TensorBoard events: TensorBoard writes to no folder like {shown(folder)}, which is not UTF-8")
        return None
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _told_elsewhere
    return SummaryWriter(folder, purge_step=step + 1)
