"""What a training is to the engine: a task, how often things are due, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from mst.checkpoint.format import Checkpoint
from mst.runtime.storage.rundir import RunDir

Batch = TypeVar("Batch")


class Counts(Protocol):
    """What the engine counts for a task; saved with it.

    Attributes:
        step: optimizer steps done, skipped ones included.
        bad_steps: steps skipped because loss or gradient was not finite.
        bad_streak: how many of them in succession, up to now.
        seconds: time spent training, over all sittings.
    """

    step: int
    bad_steps: int
    bad_streak: int
    seconds: float


class StepReport(Protocol):
    """Losses and gradients of one batch, before anything was changed with them."""

    @property
    def skipped(self) -> bool:
        """Whether a loss or a gradient is not finite."""

    @property
    def indices(self) -> Tensor:
        """Dataset positions of the batch [B], on the CPU."""

    def scalars(self) -> dict[str, float]:
        """Return the losses and the gradient norm by their names in metrics.jsonl: `loss`, `grad_norm` and others."""


class Shards(Protocol):
    """How the parts of a task that is divided over processes are saved.

    Attributes:
        place: of this process in the order of parts; None if another one has the same and writes them.
    """

    place: int | None

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all processes; they call it in a thread that may run beside steps."""


@dataclass(frozen=True)
class Back:
    """A task's wish to go on from an earlier step, with other settings; the same in all processes.

    Attributes:
        before: from the newest sound checkpoint up to this step, else from the oldest.
        number: of the return, from 1.
        note: takes the step that is gone back to; the first process writes down that it happened. From then on the
            steps beyond count as abandoned, whenever the training is killed.
        restore: takes the checkpoint up.
        advice: what to do where there is no checkpoint to go back to.
    """

    before: int
    number: int
    note: Callable[[int], None]
    restore: Callable[[Checkpoint], None]
    advice: str


@dataclass(frozen=True)
class Remarks:
    """What a task says after a step or an evaluation.

    Attributes:
        row: of metrics, without what the engine knows (step, speed, counts); None = no row.
        shown: numbers for the progress line.
        warnings: a line each.
        failure: why the training ends here, or None; it is saved first.
        back: where to go on, None = here. The step gets a row, but neither checkpoint nor evaluation.
    """

    row: Mapping[str, Any] | None = None
    shown: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    failure: str | None = None
    back: Back | None = None


class Task(Protocol[Batch]):
    """A training: its networks, batches and losses."""

    @property
    def title(self) -> str:
        """Its name in messages: "pre-training", "detector"."""

    @property
    def state(self) -> Counts:
        """What the engine counts."""

    @property
    def buffers(self) -> Sequence[Tensor]:
        """Those of the networks; put back when a step is not finite."""

    @property
    def too_many(self) -> str:
        """What to do about steps that are not finite, for the message that ends the training."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield `Intervals.accumulate` batches for each step from `first_step` on, always the same ones for a step.

        It is iterated in a thread of its own; a generator is closed at the end.
        """

    def gradients(self, microbatches: Sequence[Batch], *, row_due: bool) -> StepReport:
        """Compute losses and clipped gradients of a step; change buffers and gradients, nothing else."""

    def apply(self, report: Any) -> None:
        """Change the parameters, and all that follows from them."""

    def after_step(self, report: Any, *, row_due: bool) -> Remarks:
        """Take note of a step that is done or was skipped; in memory only."""

    def evaluate(self) -> Remarks | None:
        """Return a row of an evaluation; None where there is none. It changes nothing that is saved."""

    def describe(self, shown: Mapping[str, float]) -> str:
        """Write the numbers of the progress line in a few words."""

    def draw(self, *, missing_only: bool) -> None:
        """Write the picture that is due at this step, if there is one."""

    def export(self) -> None:
        """Write the network for use elsewhere, where every checkpoint brings one."""

    @property
    def shards(self) -> Shards | None:
        """How its parts are saved; None where the first process has all of it."""

    def collect(self) -> None:
        """Bring to the first process what others hold of what is evaluated, drawn and exported; called in all."""

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """Return the parts of a checkpoint by name; tensors may be the live ones."""

    def info(self) -> dict[str, Any]:
        """Return what is kept beside the parts, as JSON types."""

    def wants(self, checkpoint: Checkpoint) -> bool:
        """Whether to go on from this checkpoint, not from one before it."""

    def abandoned(self, step: int, info: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of steps that were left when the task went back (`Remarks.back`)."""

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint.

        Raises:
            UsageError: it is of other settings, data or networks; nothing has changed.
        """


@dataclass(frozen=True)
class Intervals:
    """How long a training is, and how often something is due, in steps.

    Attributes:
        steps: in all.
        batch_size: images per step.
        accumulate: microbatches that make one step.
        row: between two rows of metrics.
        evaluation: between two evaluations, and after the last step; None = only after the last.
        checkpoint: between two checkpoints, and after the last step.
        max_bad_steps: so many steps in succession may be skipped because something is not finite; one more ends it.
        evaluate_first: also before the first step.
        ahead: steps whose batches are taken from the task before they are needed (a device works meanwhile).
    """

    steps: int
    batch_size: int
    accumulate: int
    row: int
    evaluation: int | None
    checkpoint: int
    max_bad_steps: int
    evaluate_first: bool = False
    ahead: int = 0

    def row_due(self, step: int) -> bool:
        """Whether a row of metrics is written after `step` steps."""
        return step in {1, self.steps} or step % self.row == 0

    def evaluation_due(self, step: int) -> bool:
        """Whether the networks are evaluated after `step` steps."""
        if step == 0:
            return self.evaluate_first
        return step == self.steps or (self.evaluation is not None and step % self.evaluation == 0)

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step` steps."""
        return step == self.steps or step % self.checkpoint == 0


@dataclass(frozen=True)
class Outputs:
    """Where a training leaves what it makes.

    Attributes:
        checkpoints: folder of checkpoints; the newest there is taken up. None = none.
        keep: so many checkpoints stay.
        run: folder for metrics.jsonl, bad_steps.jsonl and TensorBoard; None = no rows.
        tensorboard: write TensorBoard events into `run`.
        history: steps back from the newest checkpoint for which one is kept as well, that of step 0 included, so that
            a task can go back (`Remarks.back`); 0 = it never does.
        resume: what to type to go on, in messages.
        progress: show a bar, or a line now and then where there is no terminal.
        on_row: is told of every row of metrics after it is written.
    """

    checkpoints: Path | None
    keep: int
    run: RunDir | None
    resume: str
    tensorboard: bool = False
    history: int = 0
    progress: bool = True
    on_row: Callable[[Mapping[str, Any]], None] | None = None
