"""Training with labels as a task of the engine: a network, an optimizer, a loss; used by every downstream training.

A run that is stopped and resumed is bit-equal to one that was not: batches come from their step, every draw of a step
from (seed, step), and everything else is in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mst.checkpoint.compare import refuse_other_training
from mst.checkpoint.fit import Unfit, check_module, check_optimizer, number, section, whole
from mst.checkpoint.format import Checkpoint
from mst.engine.schedule import Checkpointing, LoopSettings, learning_rate
from mst.engine.task import Intervals, Outputs, Remarks, Task
from mst.engine.trainer import Trainer
from mst.errors import CheckpointError
from mst.model.stochastic_depth import Draw, branch_draws
from mst.parallel.batch_norm import share_statistics
from mst.parallel.world import World
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.progress import describe_loss
from mst.runtime.seeding import derive_seed, drawn_from, uniforms
from mst.runtime.storage.rundir import RunDir

NUMBER_BITS = 24
"""Places in a stream of draws: position in the batch, then number."""
DRAWS = "by position"
"""How a step draws; a training that drew otherwise cannot be resumed as it would have gone on."""
KEPT = 2
"""Checkpoints that stay on disk."""
Begun = Callable[[Mapping[str, Any]], None]
"""Called with the identity of a training before its first step; may note how the training was asked for."""
TOO_MANY = "start anew with a lower learning rate, or with --precision fp32 where there is such an option"


class Microbatch(Protocol):
    """What every microbatch says of itself."""

    @property
    def indices(self) -> Sequence[int] | Tensor:
        """Dataset positions of its images, for the list of skipped steps."""

    @property
    def positions(self) -> range:
        """Its positions in the step's whole batch."""


Batch = TypeVar("Batch", bound=Microbatch)


@dataclass(frozen=True)
class Training(Generic[Batch]):
    """What is trained, and on what.

    Attributes:
        title: of the training, in messages: "detector".
        model: on its device; put in training mode.
        optimizer: its groups may have a `scale`, their share of the learning rate.
        batches: takes the first step that is needed; yields `accumulate` batches for each step from there on, always
            the same ones for a step. It is closed at the end.
        loss: takes the model and a batch, returns the mean loss of the batch, a scalar. It moves the batch to the
            device. Draws from torch's global generators are repeatable inside.
        evaluate: returns one row of metrics; called every `evaluate_every` steps and after the last one. It may change
            the model's mode, nothing else of it.
        image: takes a dataset position; returns the path or name of its image.
        weight: takes a microbatch; returns how much its mean loss counts in that of the step: its images, or pixels.
    """

    title: str
    model: nn.Module
    optimizer: Optimizer
    batches: Callable[[int], Generator[Batch, None, None]]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[], Mapping[str, float]] | None = None
    image: Callable[[int], object] = str
    weight: Callable[[Batch], float] = lambda batch: float(len(batch.positions))


@dataclass(frozen=True)
class TrainContext:
    """Where a training runs and what it leaves behind.

    Attributes:
        device: of the model.
        dtype: compute type of model and loss (autocast); parameters stay float32.
        seed: of the draws inside a step.
        saving: checkpoints.
        identity: JSON types; what a checkpoint must have been trained with to be resumed: settings, data, weights.
        run: folder for metrics.jsonl, bad_steps.jsonl and TensorBoard; None = no rows.
        tensorboard: write TensorBoard events into `run`.
        resume: what to type to go on, in messages.
        progress: show a bar, or a line now and then where there is no terminal.
        begun: called once the newest checkpoint, if there is one, is known to fit.
        shorter: identity of the training before it was made longer, whose checkpoints are taken up as well; None = it
            was not.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int
    saving: Checkpointing
    identity: Mapping[str, Any]
    run: RunDir | None = None
    tensorboard: bool = False
    resume: str = "the same command"
    progress: bool = True
    begun: Begun = lambda identity: None
    shorter: Mapping[str, Any] | None = None


def own_identity(context: TrainContext) -> dict[str, Any]:
    """Return what a training is, with how this version draws."""
    return {**context.identity, "draws": DRAWS}


class PreparedTraining(NamedTuple, Generic[Batch]):
    """A training that is ready to be carried out (`fit(*prepared)`), or to be looked at (`mst replay`)."""

    training: Training[Batch]
    settings: LoopSettings
    context: TrainContext

    @property
    def intervals(self) -> Intervals:
        """How long it is, and how often something is due."""
        settings = self.settings
        return Intervals(
            steps=settings.steps,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            row=settings.row_every,
            evaluation=settings.evaluate_every,
            checkpoint=self.context.saving.checkpoint_every,
            max_bad_steps=settings.max_bad_steps,
        )

    def task(self) -> Task[Batch]:
        """Return it as a task of the engine, at step 0."""
        return _Supervised(*self)


@dataclass(frozen=True)
class Outcome:
    """How a training went.

    Attributes:
        steps: optimizer steps, skipped ones included.
        skipped_steps: how many had no finite loss or gradient and changed nothing.
        final_loss: mean over the last tenth of the steps; None if all of them were skipped.
    """

    steps: int
    skipped_steps: int
    final_loss: float | None


def fit(training: Training[Batch], settings: LoopSettings, context: TrainContext) -> Outcome:
    """Train in place, from the newest checkpoint if there is one.

    Raises:
        UsageError: the checkpoints are of other settings, data or weights.
        RunFailure: too many bad steps in a row, or the disk refused.
        Interrupted: a signal; what was learnt is saved where checkpoints are asked for.
        Exception: whatever batches and evaluation raise; what was learnt is saved likewise.
    """
    task = _Supervised(training, settings, context)
    folder = context.saving.checkpoints
    outputs = Outputs(
        checkpoints=user_path(folder) if folder else None,
        keep=KEPT,
        run=context.run,
        resume=context.resume,
        tensorboard=context.tensorboard,
        progress=context.progress,
    )
    trainer = Trainer(task, PreparedTraining(training, settings, context).intervals, outputs)
    task.world.from_first(partial(context.begun, task.identity))
    trainer.fit()
    return task.state.outcome()


@dataclass
class _State:
    """What changes besides model and optimizer: counts and sums."""

    step: int = 0
    bad_steps: int = 0
    bad_streak: int = 0
    row_sum: float = 0.0
    row_count: int = 0
    tail_sum: float = 0.0
    tail_count: int = 0
    seconds: float = 0.0

    def outcome(self) -> Outcome:
        final = self.tail_sum / self.tail_count if self.tail_count else None
        return Outcome(self.step, self.bad_steps, final)

    def load(self, values: Mapping[str, Any]) -> None:
        """Take over what `vars` returned, once all of it fits.

        Raises:
            Unfit: it is missing, or no such number.
        """
        counts = {name: whole(values, name) for name in ("step", "bad_steps", "bad_streak", "row_count", "tail_count")}
        sums = {name: number(values, name) for name in ("row_sum", "tail_sum", "seconds")}
        vars(self).update(counts | sums)


@dataclass(frozen=True)
class _Report:
    """What one step was, as `mst.engine.task.StepReport` says; `lr` is its learning rate."""

    loss: float
    grad_norm: float
    lr: float
    indices: Tensor

    @property
    def skipped(self) -> bool:
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))

    def scalars(self) -> dict[str, float]:
        return {"loss": self.loss, "grad_norm": self.grad_norm}


class _Supervised(Generic[Batch]):
    """A training with labels, as `mst.engine.task.Task` says."""

    too_many = TOO_MANY

    def __init__(self, training: Training[Batch], settings: LoopSettings, context: TrainContext) -> None:
        self.training, self.settings, self.context = training, settings, context
        self.identity = own_identity(context)
        self.title, self.state, self.world = training.title, _State(), World.current()
        if self.world.size > 1:
            share_statistics(training.model)
        training.model.train()
        self.parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
        self.buffers = list(training.model.buffers())

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        return self.training.batches(first_step)

    def gradients(self, microbatches: Sequence[Batch], *, row_due: bool) -> _Report:
        model, context, step = self.training.model, self.context, self.state.step
        total = torch.zeros((), device=context.device)
        autocast = partial(torch.autocast, context.device.type, context.dtype, enabled=context.dtype != torch.float32)
        self.training.optimizer.zero_grad()
        for microbatch, share in zip(microbatches, self._shares(microbatches), strict=True):
            draws = drawn_from(context.device, context.seed, "downstream-step", step, microbatch.positions.start)
            with draws, branch_draws(self._depth(microbatch)), autocast():
                loss = self.training.loss(model, microbatch) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._add_up(total)
        clip = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        values = torch.stack([total.float(), norm.float().to(total.device)]).tolist()
        indices = torch.cat([torch.as_tensor(microbatch.indices, dtype=torch.int64) for microbatch in microbatches])
        return _Report(values[0], values[1], learning_rate(step, self.settings), indices)

    def _add_up(self, loss: Tensor) -> None:
        """Add loss and gradients over all processes; one that has no gradient for a parameter adds nothing."""
        if self.world.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.world.add(loss, *gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _shares(self, microbatches: Sequence[Batch]) -> list[float]:
        """Return each microbatch's share of the step's mean loss, over all processes."""
        weights = [self.training.weight(microbatch) for microbatch in microbatches]
        whole = torch.tensor([sum(weights)], dtype=torch.float64)  # on the CPU: gloo adds it, no device is waited for
        self.world.add(whole)
        return [weight / max(float(whole), torch.finfo(torch.float32).tiny) for weight in weights]

    def _depth(self, microbatch: Batch) -> Draw:
        """Return the draws of stochastic depth, each a function of (seed, step, position in the batch, branch)."""
        seed = derive_seed(self.context.seed, "downstream-depth", self.state.step)
        start = microbatch.positions.start

        def draw(rows: int, count: int) -> Tensor:
            places = np.arange(start, start + rows, dtype=np.int64)[:, None] << NUMBER_BITS
            return uniforms(seed, places | np.arange(count, dtype=np.int64))

        return draw

    def apply(self, report: _Report) -> None:
        for group in self.training.optimizer.param_groups:
            group["lr"] = report.lr * group.get("scale", 1.0)
        self.training.optimizer.step()

    def after_step(self, report: _Report, *, row_due: bool) -> Remarks:
        state, settings = self.state, self.settings
        if not report.skipped:
            state.row_sum, state.row_count = state.row_sum + report.loss, state.row_count + 1
            if state.step > settings.steps - max(1, settings.steps // 10):
                state.tail_sum, state.tail_count = state.tail_sum + report.loss, state.tail_count + 1
        row = None
        if row_due:
            row = {
                "images": state.step * settings.batch_size,
                "loss": state.row_sum / state.row_count if state.row_count else None,
                "lr": report.lr,
                "grad_norm": report.grad_norm,
            }
            state.row_sum, state.row_count = 0.0, 0
        return Remarks(row, shown={"lr": report.lr, "loss": report.loss})

    def evaluate(self) -> Remarks | None:
        if self.training.evaluate is None:
            return None
        try:
            return Remarks(self.training.evaluate())
        finally:
            self.training.model.train()

    def describe(self, shown: Mapping[str, float]) -> str:
        return describe_loss(shown)

    def draw(self, *, missing_only: bool) -> None:
        """There are no pictures of a training with labels."""

    def export(self) -> None:
        """The caller saves what was trained, once it is whole."""

    @property
    def shards(self) -> None:
        """Every process has all of it."""
        return None

    def collect(self) -> None:
        """Every process has all of it."""

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        return {
            "model": self.training.model.state_dict(),
            "optimizer": self.training.optimizer.state_dict(),
            "progress": dict(vars(self.state)),
        }

    def info(self) -> dict[str, Any]:
        return {"identity": self.identity}

    def wants(self, checkpoint: Checkpoint) -> bool:
        return True

    def abandoned(self, step: int, info: Mapping[str, Any]) -> bool:
        """Never: such a training does not go back."""
        return False

    def load(self, checkpoint: Checkpoint) -> None:
        known, shorter = checkpoint.info.get("identity", {}), self.context.shorter
        longer_now = shorter is not None and known == {**shorter, "draws": DRAWS}
        if not longer_now:
            refuse_other_training(known, self.identity, checkpoint.path.parent)
        model, optimizer, parts = self.training.model, self.training.optimizer, checkpoint.parts
        try:
            progress = section(parts, "progress")
            step = whole(progress, "step", most=self.settings.steps)
            check_module(parts.get("model"), model, "model")
            check_optimizer(parts.get("optimizer"), optimizer, steps=step)
            self.state.load(progress)
            if longer_now:
                self.state.tail_sum, self.state.tail_count = 0.0, 0  # the last tenth is another now
        except Unfit as error:
            raise CheckpointError(f"{checkpoint.path} does not fit this training: {error}") from error
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(parts["optimizer"])
        logging.info(f"resuming the {self.title} at step {step} from {checkpoint.path}")
