"""Going back to an earlier step of a training, so that a kill at any moment leaves one history or the other.

In this order: the rows beyond are copied to where abandoned rows lie; the task writes down that it went back, and from
then on the steps beyond are abandoned; their checkpoints and rows are deleted; the checkpoint is taken up. A training
that is resumed after a kill does what is left of it.
"""

from __future__ import annotations

from pathlib import Path

from mst.checkpoint.store import CheckpointStore
from mst.engine.task import Back
from mst.errors import CheckpointError
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.record import bad_steps_file, step_of
from mst.runtime.storage.rundir import RunDir


def target_step(store: CheckpointStore, back: Back) -> int | None:
    """Return the step to go back to; None = there is no sound checkpoint.

    It is that of the newest one up to `back.before`, else of the oldest.
    """
    steps = store.steps()
    for most in (back.before, steps[0] if steps else -1):
        if any(step <= most for step in steps):
            try:
                return store.load_latest(most=most).step
            except CheckpointError:
                continue
    return None


def keep_abandoned(run: RunDir, number: int, step: int) -> None:
    """Copy the rows beyond `step` into the folder of this return."""
    for source in (run.metrics, bad_steps_file(run)):
        if not source.is_file():
            continue
        beyond = [line for line in source.read_bytes().splitlines(keepends=True) if step < step_of(line) < float("inf")]
        if beyond:
            folder = abandoned_folder(run, number)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / source.name, b"".join(beyond))


def abandoned_folder(run: RunDir, number: int) -> Path:
    """Return where the rows lie that were abandoned when a training went back for the `number`th time, from 1."""
    return run.abandoned / f"repair_{number}"
