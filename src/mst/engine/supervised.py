"""The downstream loop: a deterministic stream of batches in, a trained network, rows and checkpoints out.

Used by every task that trains with labels. A run that is stopped and resumed is bit-equal to one that was not: batches
come from their step, every draw of a step from (seed, step), and everything else is in the checkpoint.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mst.checkpoint.compare import refuse_other_training
from mst.checkpoint.format import Checkpoint
from mst.checkpoint.store import CheckpointStore
from mst.errors import CheckpointError, Interrupted, MstError, RunFailure
from mst.finetune.schedule import Checkpointing, LoopSettings, learning_rate
from mst.runtime import logging
from mst.runtime.progress import Throughput, TrainingProgress, describe_loss
from mst.runtime.record import RunRecord
from mst.runtime.rundir import RunDir
from mst.runtime.seeding import drawn_from
from mst.runtime.signals import GracefulStop

Batch = TypeVar("Batch")
KEPT = 2
"""Checkpoints that stay on disk."""
SIGNAL_LAG = 1.0
"""Seconds that a signal to all processes may reach the source of the batches before it reaches the loop."""


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
    """

    title: str
    model: nn.Module
    optimizer: Optimizer
    batches: Callable[[int], Generator[Batch, None, None]]
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Surroundings:
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


def fit(training: Training[Batch], settings: LoopSettings, where: Surroundings) -> Outcome:
    """Train in place, from the newest checkpoint if there is one.

    Rows come before evaluation, evaluation before the checkpoint of the same step: a run resumed from it repeats
    nothing and misses nothing.

    Raises:
        UsageError: the checkpoints are of other settings, data or weights.
        RunFailure: too many bad steps in a row, or the disk refused.
        Interrupted: SIGINT or SIGTERM; the step was finished, and saved where checkpoints are asked for.
        MstError: whatever the batches raise; the steps before are saved.
    """
    session = _Session(training, settings, where)
    then = "saving a checkpoint" if session.store else "stopping; nothing is saved without --checkpoints"
    try:
        stream = closing(training.batches(session.state.step))
        with GracefulStop(f"finishing this step, then {then}") as stop, session.progress, stream as source:
            while session.state.step < settings.steps:
                try:
                    parts = session.parts(source)
                except MstError:
                    session.save()
                    if not stop.within(SIGNAL_LAG):
                        raise
                else:
                    session.step(parts)
                if stop.signum is not None and session.state.step < settings.steps:
                    session.interrupt(stop.signum)
    finally:
        if session.record is not None:
            session.record.close()
    return session.state.outcome()


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


class _Session(Generic[Batch]):
    """One sitting of a training."""

    def __init__(self, training: Training[Batch], settings: LoopSettings, where: Surroundings) -> None:
        self.training, self.settings, self.where = training, settings, where
        self.state = _State()
        folder = where.saving.checkpoints
        self.store = CheckpointStore(Path(folder), keep=KEPT) if folder else None
        resumed = self.store is not None and bool(self.store.steps())
        if self.store is not None and resumed:
            self._load(self.store.load_latest())
        training.model.train()
        self.parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
        self.buffers = [buffer for buffer in training.model.buffers() if buffer.is_floating_point()]
        done = self.state.step if resumed else -1
        self.record = RunRecord(where.run, step=done, tensorboard=where.tensorboard) if where.run else None
        self.progress = TrainingProgress(
            training.title, describe_loss, step=self.state.step, total_steps=settings.steps, shown=where.progress
        )
        self.throughput, self.waited = Throughput(), 0.0
        self.clock = time.perf_counter()

    def parts(self, stream: Generator[Batch, None, None]) -> list[Batch]:
        """Take the batches of the next step."""
        started = time.perf_counter()
        parts = list(itertools.islice(stream, self.settings.accumulate))
        if len(parts) < self.settings.accumulate:
            raise ValueError(f"the batches ended at step {self.state.step} of {self.settings.steps}")
        self.waited = time.perf_counter() - started
        return parts

    def step(self, parts: list[Batch]) -> None:
        """Do one step and all that is due after it."""
        state, settings = self.state, self.settings
        started = time.perf_counter()
        lr = learning_rate(state.step, settings)
        loss, norm = self._update(parts, lr)
        state.step += 1
        busy = time.perf_counter() - started
        self.throughput.add(images=settings.batch_size, wait=self.waited, busy=busy)
        self._count(loss, norm)
        self.progress.show(state.step, {"lr": lr, "loss": loss, **self.throughput.row()})

        last = state.step == settings.steps
        if last or state.step == 1 or state.step % settings.row_every == 0:
            self._write_row(lr, norm)
        if last or (settings.evaluate_every and state.step % settings.evaluate_every == 0):
            self._evaluate()
        if last or state.step % self.where.saving.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, after the rows that belong to it; before the first step there is nothing to save."""
        if self.store is None or self.state.step == 0:
            return
        self._pass_time()
        if self.record is not None:
            self.record.flush()
        parts = {
            "model": self.training.model.state_dict(),
            "optimizer": self.training.optimizer.state_dict(),
            "progress": dict(vars(self.state)),
        }
        self.store.save(self.state.step, parts, {"identity": dict(self.where.identity)})

    def interrupt(self, signum: int) -> NoReturn:
        """Save and stop, because a signal asked for it.

        Raises:
            Interrupted: always.
        """
        self.save()
        saved = self.store is not None and self.state.step
        hint = f"all is saved: {self.where.resume} resumes it" if saved else "nothing was saved"
        raise Interrupted(f"stopped after step {self.state.step} of {self.settings.steps}; {hint}", signum)

    def _update(self, parts: list[Batch], lr: float) -> tuple[float, float]:
        """Do one optimizer step; return the loss and the gradients' norm. If either is not finite, nothing changed."""
        model, optimizer, where = self.training.model, self.training.optimizer, self.where
        buffers = [buffer.clone() for buffer in self.buffers]
        total = torch.zeros((), device=where.device)
        optimizer.zero_grad()
        for position, part in enumerate(parts):
            draws = drawn_from(where.device, where.seed, "downstream-step", self.state.step, position)
            with draws, torch.autocast(where.device.type, where.dtype, enabled=where.dtype != torch.float32):
                loss = self.training.loss(model, part) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        clip = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        values = torch.stack([total.float(), norm.float().to(total.device)]).tolist()
        if not all(map(math.isfinite, values)):
            for buffer, before in zip(self.buffers, buffers, strict=True):
                buffer.copy_(before)
            return values[0], values[1]
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        optimizer.step()
        return values[0], values[1]

    def _count(self, loss: float, norm: float) -> None:
        """Note a step's outcome; give up after too many bad ones.

        Raises:
            RunFailure: `max_bad_steps` in a row.
        """
        state, limit = self.state, self.settings.max_bad_steps
        if math.isfinite(loss) and math.isfinite(norm):
            state.bad_streak = 0
            state.row_sum, state.row_count = state.row_sum + loss, state.row_count + 1
            if state.step > self.settings.steps - max(1, self.settings.steps // 10):
                state.tail_sum, state.tail_count = state.tail_sum + loss, state.tail_count + 1
            return
        state.bad_steps, state.bad_streak = state.bad_steps + 1, state.bad_streak + 1
        if self.record is not None:
            self.record.bad_step({"step": state.step, "loss": str(loss), "grad_norm": str(norm)})
        if state.bad_streak >= limit:
            raise RunFailure(
                f"{limit} steps in a row without a finite loss: lower the learning rate or use --precision fp32"
            )
        logging.warn(
            f"{self.training.title}: step {state.step} skipped: loss {loss:g}, gradient norm {norm:g} are not finite"
        )

    def _write_row(self, lr: float, norm: float) -> None:
        """Write a row of metrics; its loss is the mean since the row before."""
        state = self.state
        self._pass_time()
        row = {
            "step": state.step,
            "images": state.step * self.settings.batch_size,
            "loss": state.row_sum / state.row_count if state.row_count else None,
            "lr": lr,
            "grad_norm": norm,
            **self.throughput.row(),
            "bad_steps": state.bad_steps,
            "seconds": state.seconds,
        }
        state.row_sum, state.row_count = 0.0, 0
        self.throughput.reset()
        if self.record is not None:
            self.record.metrics(row)

    def _evaluate(self) -> None:
        """Write a row with the evaluation's numbers."""
        if self.training.evaluate is not None:
            row = self.training.evaluate()
            self.training.model.train()
            if self.record is not None:
                self.record.metrics({"step": self.state.step, **row})

    def _load(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint.

        Raises:
            UsageError: it was trained with something else.
            CheckpointError: it is of another network.
        """
        refuse_other_training(checkpoint.info.get("identity", {}), self.where.identity, checkpoint.path.parent)
        try:
            self.training.model.load_state_dict(checkpoint.parts["model"])
            self.training.optimizer.load_state_dict(checkpoint.parts["optimizer"])
            self.state = _State(**checkpoint.parts["progress"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{checkpoint.path} does not fit this training: {reason}") from error
        logging.info(f"resuming the {self.training.title} at step {self.state.step} from {checkpoint.path}")

    def _pass_time(self) -> None:
        """Add the time since the last call to the run's."""
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.clock = now
