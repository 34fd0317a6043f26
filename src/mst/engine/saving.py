"""Checkpoints of a task: taken up at the start, written when due, and written when anything else ends the training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from mst.checkpoint.store import CheckpointStore
from mst.engine.rewind import keep_abandoned, target_step
from mst.engine.shards import ShardWriter
from mst.engine.task import Back, Outputs, Task
from mst.errors import CheckpointError, Interrupted, MstError, RunFailure
from mst.parallel.world import World
from mst.runtime import logging
from mst.runtime.names import shown
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.rundir import RunDir

Row = dict[str, Any]
PATIENCE = 60.0
"""Seconds that a training which ends with an error waits for a checkpoint that is being written."""


class Saver:
    """Saves one task.

    Attributes:
        rows: those of the step that was done last, by the file they belong to ("metrics", "bad_step"). They are saved
            with it: a run whose disk refused them writes them when it is resumed.
        resumed: whether a checkpoint was taken up.
    """

    def __init__(self, task: Task[Any], outputs: Outputs) -> None:
        """Take up the newest sound checkpoint, if there is one.

        Raises:
            UsageError: it is of another training, or all are damaged.
        """
        self.rows: dict[str, Row] = {}
        self._task, self._outputs = task, outputs
        folder = outputs.checkpoints
        self.store = CheckpointStore(folder, keep=outputs.keep, history=outputs.history) if folder else None
        self._failed: BaseException | None = None
        self._saved_step, self._writes = 0, World.current().first
        self._described_by: dict[Path, bytes] = {}
        self._shards = ShardWriter(self.store, task.shards) if self.store is not None and task.shards else None
        self.resumed = self._take_up(self.store) if self.store is not None else False

    def begin(self, run: RunDir) -> None:
        """Keep what makes the folder a run, for the case that it is deleted while the training goes on."""
        self._described_by = {path: path.read_bytes() for path in (run.config, run.plan) if path.is_file()}

    def _take_up(self, store: CheckpointStore) -> bool:
        """Take up the newest sound checkpoint, the same in all processes; return whether there is one.

        Raises:
            UsageError: as when made; or the checkpoint that the first process took cannot be read here.
        """
        world = World.current()
        step = world.from_first(lambda: self._load(store, None) if store.steps() else None)
        if step is None or world.first:
            return step is not None
        if step not in store.steps():
            raise CheckpointError(
                f"checkpoint {store.path(step)} is not here: the run folder has to be on storage that all hosts share"
            )
        self._load(store, step)
        return True

    def _load(self, store: CheckpointStore, most: int | None) -> int:
        """Load the newest sound checkpoint up to step `most`; return its step."""
        checkpoint = store.load_latest(self._task.wants, most=most)
        self._task.load(checkpoint)
        self._saved_step = self._task.state.step
        self.rows = checkpoint.info.get("rows", {})  # none in those of older versions
        if most is not None and self._saved_step != most:
            raise CheckpointError(f"checkpoint {store.path(most)} is sound for the first process, but not here")
        return self._saved_step

    @property
    def saves(self) -> bool:
        """Whether this process saves, and there is a place for checkpoints and something to save."""
        return self._writes and self.store is not None and (self._task.state.step > 0 or self._outputs.history > 0)

    def go_back(self, back: Back) -> int | None:
        """Let the task go back, in all processes; return the step that it went back to, None if there is no checkpoint.

        The rows beyond are in `rewind.abandoned_folder`; those in the run's own files are the caller's to drop.

        Raises:
            RunFailure: the disk refused, or another process reads other checkpoints.
        """
        store, run = self.store, self._outputs.run
        if store is None or run is None:
            return None
        self.wait()
        step = World.current().from_first(lambda: target_step(store, back))
        if step is None:
            return None
        checkpoint = store.load_latest(most=step)
        if checkpoint.step != step:
            raise CheckpointError(f"checkpoint {store.path(step)} is sound for the first process, but not here")
        if self._writes:
            keep_abandoned(run, back.number, step)
        back.note(step)
        if self._writes:
            store.discard(lambda saved, _: saved > step)
        if self._shards is not None:
            self._shards.committed = step
        back.restore(checkpoint)
        self._saved_step, self.rows = step, checkpoint.info.get("rows", {})
        return step

    def save(self) -> None:
        """Write a checkpoint, unless processes write parts of it; before the first step there is nothing to save.

        One in the middle of steps that were skipped is provisional: it takes no other one's place.

        Raises:
            RunFailure: the disk refused.
        """
        if self.store is None or not self.saves or self._shards is not None:
            return
        task, state = self._task, self._task.state
        try:
            info = {**task.info(), "rows": self.rows}
            self.store.save(state.step, task.state_dicts(), info, provisional=state.bad_streak > 0)
        except BaseException as error:
            self._failed = error
            raise
        self._saved_step = state.step

    def save_parts(self) -> None:
        """Begin to write this process's parts of a checkpoint; called in all processes.

        Raises:
            RunFailure: the disk refused it, or the one before.
        """
        state = self._task.state
        if self._shards is not None and (state.step > 0 or self._outputs.history > 0):
            info = {**self._task.info(), "rows": self.rows}
            self._shards.start(state.step, self._task.state_dicts(), info, provisional=state.bad_streak > 0)

    def wait(self) -> None:
        """Wait until a checkpoint that is being written is whole.

        Raises:
            RunFailure: the disk refused it.
        """
        if self._shards is not None:
            self._shards.wait()

    def rescue(self, error: BaseException, *, half_done: bool) -> BaseException:
        """Save what is learnt, because `error` ends the training; return what to raise in its place.

        Args:
            error: kept as message and cause.
            half_done: whether a step is; then there is nothing sound to save.
        """
        said = self._described(error)
        if isinstance(error, Interrupted) or error is self._failed or not self.saves:
            return said
        step, resume = self._task.state.step, self._outputs.resume
        if self._shards is not None:
            return self._without_others(self._shards, said)
        if half_done:
            logging.warn(f"step {step + 1} was half done: {resume} goes on from the newest checkpoint")
            return said
        try:
            if step != self._saved_step:
                self.save()
            for path, content in self._described_by.items():
                if not path.exists():
                    write_atomic(path, content)
        except Exception as second:
            return _failure(f"{said}; saving step {step} failed as well: {second}", said)
        logging.info(f"saved at step {step}: {resume} goes on from there")
        with suppress(Exception):  # the checkpoint is what counts; the next one brings a backbone again
            self._task.export()
        return said

    def _without_others(self, shards: ShardWriter, said: BaseException) -> BaseException:
        """Say where a run goes on whose networks are divided: nobody can save what others hold, who may be gone."""
        with suppress(Exception):
            shards.wait(PATIENCE)
        done = f"of step {shards.committed}" if shards.committed is not None else "before this sitting"
        logging.warn(f"{self._outputs.resume} goes on from the newest checkpoint, {done}")
        return said

    def interrupt(self, signum: int, steps: int) -> Interrupted:
        """Save because a signal asked for it; return what to raise.

        Raises:
            RunFailure: the disk refused.
        """
        saves, step = self.saves, self._task.state.step
        self._task.collect()
        self.save()
        self.save_parts()
        self.wait()
        if saves:
            self._task.export()
        hint = f"all is saved: {self._outputs.resume} goes on from there" if saves else "nothing was saved"
        return Interrupted(f"stopped at step {step} of {steps}; {hint}", signum)

    def _described(self, error: BaseException) -> BaseException:
        """Return an error of the system as one that says what was refused; any other as it is."""
        if not isinstance(error, OSError) or error.strerror is None:
            return error
        run = self._outputs.run
        name = error.filename if isinstance(error.filename, str | bytes) else run.root if run else None
        where = f" {shown(name)}" if name else ""
        return _failure(f"cannot read or write{where}: {error.strerror}", error)


def _failure(message: str, cause: BaseException) -> RunFailure:
    """Return a failure with the exit status of its cause."""
    failure = RunFailure(message)
    if isinstance(cause, MstError):
        failure.exit_code = cause.exit_code
    elif isinstance(cause, KeyboardInterrupt):
        failure.exit_code = 130
    failure.__cause__ = cause
    return failure
