"""Checkpoints of networks that are divided over processes: each writes its parts, beside the steps that follow.

The parts are copied at once and written in a thread, one checkpoint at a time. When all processes have told that theirs
are on disk, with size and hash, the first one writes what makes a checkpoint of them (`CheckpointStore.commit`); a
crash before leaves the checkpoints as they were.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from mst.checkpoint.format import SHARDED_FORMAT, write_parts
from mst.checkpoint.sharded import Parts, split
from mst.checkpoint.store import PROVISIONAL, CheckpointStore
from mst.engine.task import Shards
from mst.errors import MstError, RunFailure
from mst.parallel.world import World


class ShardWriter:
    """Writes the checkpoints of one task.

    Attributes:
        committed: the step of the last checkpoint that is whole, on the first process; None = none in this sitting.
    """

    committed: int | None = None

    def __init__(self, store: CheckpointStore, shards: Shards) -> None:
        self._store, self._shards, self._world = store, shards, World.current()
        self._thread: threading.Thread | None = None
        self._failure: MstError | None = None

    def start(self, step: int, parts: dict[str, Any], info: dict[str, Any], *, provisional: bool) -> None:
        """Begin to write a checkpoint; called in all processes, after the one before is done.

        Args:
            step: optimizer steps done.
            parts: state dictionaries by name; may change afterwards.
            info: kept beside them, JSON types.
            provisional: see `CheckpointStore.save`.

        Raises:
            RunFailure: the disk refuses; or refused the checkpoint before.
        """
        self.wait()
        aside = self._world.from_first(lambda: self._store.begin(step))
        if aside is None:
            return
        first = self._world.first
        own = split(parts, self._shards.place, rest=first)

        def work() -> None:
            files, problem = _written(aside, own)
            try:
                found = self._shards.exchange((files, problem, self._world.name))
            except RuntimeError:
                self._failure = RunFailure(f"checkpoint {self._store.path(step)} is not whole: another process is gone")
                return
            if first:
                self._finish(aside, step, found, {**info, PROVISIONAL: True} if provisional else info)

        self._thread = threading.Thread(target=work, name="mst-checkpoint", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the checkpoint that is being written is whole.

        Raises:
            RunFailure: it is not: a disk refused; on the first process.
        """
        if self._thread is not None:
            self._thread.join(seconds)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _finish(self, aside: Path, step: int, found: list[Any], info: dict[str, Any]) -> None:
        """Make a checkpoint of what all processes have written."""
        problem = next((f"{name}: {problem}" for _, problem, name in found if problem is not None), None)
        if problem is not None:
            shutil.rmtree(aside, ignore_errors=True)
            self._failure = RunFailure(f"cannot write checkpoint {self._store.path(step)}: {problem}: mend that")
            return
        files = {name: record for each, _, _ in found for name, record in each.items()}
        try:
            self._store.commit(aside, step, files, info, version=SHARDED_FORMAT)
            self.committed = step
        except MstError as error:
            self._failure = error


def _written(folder: Path, parts: Parts) -> tuple[dict[str, Any], str | None]:
    """Write parts; return what is said of the files, and what the disk said if it refused."""
    try:
        return write_parts(folder, parts), None
    except OSError as error:
        return {}, error.strerror or str(error)
