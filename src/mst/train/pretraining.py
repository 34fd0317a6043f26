"""The loop: batches in, a trained pair, rows, pictures and checkpoints out; it ends well whatever ends it."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from mst.checkpoint.compare import refuse_changed_settings
from mst.checkpoint.store import CheckpointStore
from mst.config.schema import RunConfig, RunPlan
from mst.errors import Interrupted, MstError, RunFailure
from mst.model.backbone import Backbone
from mst.model.backbone_file import save_backbone
from mst.objective.records import ObjectiveValues
from mst.runtime import logging
from mst.runtime.disk import disk_errors
from mst.runtime.progress import Throughput, TrainingProgress, describe_speed
from mst.runtime.record import RunRecord, bad_steps_file
from mst.runtime.rundir import RunDir
from mst.runtime.seeding import generator
from mst.runtime.signals import GracefulStop
from mst.train.guard import METRIC, knn_guard
from mst.train.monitors import collapse_message, feature_std, rankme
from mst.train.previews import preview, save_preview
from mst.train.schedule import StepValues, step_values
from mst.train.state import TrainState
from mst.train.step import StepReport, train_step
from mst.views.normalise import normalise
from mst.views.record import Views

Evaluator = Callable[[Backbone], Mapping[str, float]]
"""Takes the teacher's frozen backbone, returns one row of metrics (`knn_top1`, `knn_k`)."""

PREVIEWS = 8
"""Pictures over a run, besides the first and the last."""
SIGNAL_LAG = 1.0
"""Seconds that a signal to all processes of a run may reach its loader before it."""
GRACE_SHARE = 0.1
"""Share of a run in which nothing counts as collapse; at least the warm-up."""
ROW_KEYS = (
    *("step", "epoch", "images", "loss", "self_distillation", "restoration"),
    *("lr", "weight_decay", "teacher_temp", "teacher_momentum", "grad_norm", "images_per_second", "data_wait"),
    *("teacher_entropy", "marginal_entropy", "max_entropy", "feature_std", "rankme"),
    *("masked_share", "psnr_masked", "psnr_visible", "bad_steps", "seconds"),
)
"""Keys of a row of metrics, always all of them; null where there is nothing to report."""


def restore(state: TrainState, config: RunConfig, plan: RunPlan, run: RunDir) -> None:
    """Load the newest sound checkpoint of `run` into `state`; without any checkpoint, stay at step 0 and say so.

    Raises:
        CheckpointError: all checkpoints are damaged, or settings that define the run have changed.
    """
    store = CheckpointStore(run.checkpoints, keep=config.checkpoint.keep)
    if not store.steps():
        logging.info(f"{run.root} has no checkpoint yet: starting at step 0")
        return
    checkpoint = store.load_latest()
    refuse_changed_settings(checkpoint.info["config"], config.model_dump())
    refuse_changed_settings(checkpoint.info["plan"], _plan_values(plan))
    state.load(checkpoint.parts)
    logging.info(f"resuming {run.root} at step {state.step} of {plan.total_steps}")


def fit(
    state: TrainState,
    batches: Iterable[Views],
    *,
    config: RunConfig,
    plan: RunPlan,
    run: RunDir,
    dtype: torch.dtype,
    evaluator: Evaluator | None = None,
    samples: Tensor | None = None,
) -> None:
    """Train from `state.step` to `plan.total_steps`.

    Writes metrics.jsonl, TensorBoard, checkpoints, previews, and the teacher's backbone with every checkpoint. Rows of
    metrics come before evaluation, evaluation before the checkpoint of the same step: a run resumed from it repeats
    nothing and misses nothing.

    Args:
        state: changed in place.
        batches: uint8 crops on the CPU from step `state.step` on, `config.train.accumulate` parts per step.
        config: the run's settings.
        plan: the run's derived values.
        run: its folder.
        dtype: compute type of the networks.
        evaluator: called every `config.monitor.knn_every_steps` steps, before the first and after the last.
        samples: uint8 global crops [n, C, H, W] for the previews; None = no previews.

    Raises:
        Interrupted: SIGINT or SIGTERM; the step was finished and saved.
        MstError: whatever `batches` raises; the steps before are saved.
        RunFailure: disk full, collapse or a drop of k-NN (if so configured), too many bad steps in succession.
    """
    with disk_errors(run), GracefulStop("finishing this step, then saving (Ctrl-C again: stop at once)") as stop:
        session = _Session(
            state=state, config=config, plan=plan, run=run, dtype=dtype, evaluator=evaluator, samples=samples
        )
        try:
            with session.progress:
                session.begin()
                source = iter(batches)
                while state.step < plan.total_steps:
                    try:
                        parts = session.parts(source)
                    except MstError:
                        session.keep()
                        if not stop.within(SIGNAL_LAG):
                            raise
                    else:
                        session.step(parts)
                    if stop.signum is not None and state.step < plan.total_steps:
                        session.interrupt(stop.signum)
                session.finish()
        finally:
            session.record.close()


class _Session:
    """One sitting of a run: what `fit` was given, and the outputs."""

    def __init__(
        self,
        *,
        state: TrainState,
        config: RunConfig,
        plan: RunPlan,
        run: RunDir,
        dtype: torch.dtype,
        evaluator: Evaluator | None,
        samples: Tensor | None,
    ) -> None:
        self.state, self.config, self.plan, self.run, self.dtype = state, config, plan, run, dtype
        self.evaluator, self.samples = evaluator, samples
        self.store = CheckpointStore(run.checkpoints, keep=config.checkpoint.keep)
        done = state.step if self.store.steps() else -1  # without a checkpoint even the rows of step 0 come again
        self.record = RunRecord(run, step=done, tensorboard=config.monitor.tensorboard)
        self.guard = knn_guard(config, run, step=state.step) if evaluator is not None else None
        self.progress = TrainingProgress("pre-training", describe, step=state.step, total_steps=plan.total_steps)
        self.throughput, self.waited = Throughput(), 0.0
        self.clock = time.perf_counter()

    def begin(self) -> None:
        """Record what the untrained network gives."""
        if self.state.step == 0:
            self.evaluate()
            self.preview()

    def parts(self, source: Iterator[Views]) -> list[Views]:
        """Take the parts of the next batch."""
        started = time.perf_counter()
        parts = list(itertools.islice(source, self.config.train.accumulate))
        if len(parts) < self.config.train.accumulate:
            raise ValueError(f"the batches ended at step {self.state.step} of {self.plan.total_steps}")
        self.waited = time.perf_counter() - started
        return parts

    def step(self, parts: list[Views]) -> None:
        """Do one step and all that is due after it."""
        state, config, number = self.state, self.config, self.state.step + 1
        last = number == self.plan.total_steps
        row_due = number == 1 or last or number % config.monitor.every_steps == 0

        started = time.perf_counter()
        values = step_values(self.plan, config, state.step)
        report = train_step(
            state, self._on_device(parts), values, config, self.plan, dtype=self.dtype, statistics=row_due
        )
        state.step = number
        self.throughput.add(images=len(report.indices), wait=self.waited, busy=time.perf_counter() - started)

        self._count(report)
        self.progress.show(number, {"lr": values.lr, **report.scalars(), **self.throughput.row()})
        if row_due:
            self._write_row(report, values)
        if last or number % config.monitor.knn_every_steps == 0:
            self.evaluate()
        if number % config.checkpoint.every_steps == 0 and not last:
            self.save()
            self.export()
            checkpoints = self.plan.total_steps // config.checkpoint.every_steps
            if number // config.checkpoint.every_steps % max(1, checkpoints // PREVIEWS) == 0:
                self.preview()

    def finish(self) -> None:
        """Save and export what the run was for."""
        self.save()
        self.export()
        self.preview()

    def save(self) -> None:
        """Write a checkpoint, after the rows that belong to it."""
        self._pass_time()
        self.record.flush()
        info = {
            "config": self.config.model_dump(mode="json"),
            "plan": _plan_values(self.plan),
            "environment": _environment(self.run),
        }
        self.store.save(self.state.step, self.state.state_dicts(), info)

    def keep(self) -> None:
        """Save what is learnt when the images fail."""
        if self.state.step:
            self.save()
            logging.info(f"saved at step {self.state.step}: {self.run.resume_command} goes on from there")

    def interrupt(self, signum: int) -> NoReturn:
        """Save, export and stop, because a signal asked for it.

        Raises:
            Interrupted: always.
        """
        if self.state.step:
            self.save()
            self.export()
        raise Interrupted(
            f"stopped at step {self.state.step} of {self.plan.total_steps}, all is saved: go on with "
            f"{self.run.resume_command}",
            signum,
        )

    def export(self) -> None:
        """Write the teacher's backbone for use elsewhere."""
        metadata = {
            "recipe": self.config.recipe,
            "step": self.state.step,
            "mean": list(self.plan.mean),
            "std": list(self.plan.std),
            "init": self.config.model.init,
        }
        save_backbone(self.run.backbone, self.state.pair.teacher.backbone, metadata)

    def evaluate(self) -> None:
        """Write a row with the evaluator's numbers, and compare them with those of trained weights at the start.

        Raises:
            RunFailure: a drop, with `monitor.guard = stop`; all is saved.
        """
        if self.evaluator is None:
            return
        numbers = self.evaluator(self.state.pair.teacher.backbone)
        self.record.metrics({"step": self.state.step, **numbers})
        message = self.guard.observe(numbers[METRIC], self.state.step) if self.guard is not None else None
        if message is not None and self.config.monitor.guard == "stop":
            self.save()
            self.export()
            raise RunFailure(f"{message}; saved: {self.run.resume_command} --monitor.guard warn goes on all the same")
        if message is not None:
            logging.warn(message)

    def preview(self) -> None:
        """Draw the sample images as method and networks see them now."""
        if self.samples is None:
            return
        mean, std = self.plan.mean, self.plan.std
        picture = preview(
            self.state.pair,
            normalise(self.samples.to(self.state.center.device), mean, std),
            ObjectiveValues.from_config(self.config.objective, teacher_temp=self.plan.teacher_temp),
            generator(self.config.runtime.seed, "preview"),
            mean=mean,
            std=std,
            dtype=self.dtype,
        )
        save_preview(self.run.previews / f"step_{self.state.step:07d}.png", picture)

    def _on_device(self, parts: list[Views]) -> Iterator[Views]:
        """Yield normalised parts on the networks' device, one at a time."""
        device, mean, std = self.state.center.device, self.plan.mean, self.plan.std
        for part in parts:
            crops, local_crops = (
                normalise(pixels.to(device, non_blocking=True), mean, std)
                for pixels in (part.global_crops, part.local_crops)
            )
            yield Views(crops, local_crops, part.indices)

    def _count(self, report: StepReport) -> None:
        """Note a step's outcome; give up after too many bad ones.

        Raises:
            RunFailure: more than `train.max_bad_steps` in succession.
        """
        state, limit = self.state, self.config.train.max_bad_steps
        self._pass_time()
        if not report.skipped:
            state.bad_streak = 0
            state.features.push(report.features)
            state.means.add(report.scalars())
            return
        state.bad_steps += 1
        state.bad_streak += 1
        numbers = {name: str(value) for name, value in report.scalars().items()}
        self.record.bad_step({"step": state.step, **numbers, "indices": report.indices.tolist()})
        listing = bad_steps_file(self.run)
        if state.bad_streak > limit:
            raise RunFailure(
                f"{state.bad_streak} steps in succession had a loss or gradient that is not finite "
                f"(--train.max-bad-steps {limit}): lower --optimizer.lr or set --runtime.precision fp32; "
                f"their images are listed in {listing}"
            )
        logging.warn(
            f"step {state.step} skipped: loss {report.loss:g}, gradient norm {report.grad_norm:g}; see {listing}"
        )

    def _write_row(self, report: StepReport, values: StepValues) -> None:
        """Write a row of metrics and look for collapse.

        Raises:
            RunFailure: collapse, with `monitor.collapse = stop`.
        """
        state, features = self.state, self.state.features.features()
        statistics = dict(report.statistics)
        if len(features):
            statistics |= {"feature_std": feature_std(features).item(), "rankme": rankme(features).item()}
        row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
        row |= {
            "step": state.step,
            "epoch": state.step / self.plan.steps_per_epoch,
            "images": state.step * self.plan.batch_size,
            **state.means.take(),
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "teacher_temp": values.teacher_temp,
            "teacher_momentum": values.teacher_momentum,
            **self.throughput.row(),
            **statistics,
            "max_entropy": math.log(self.plan.prototypes),
            "bad_steps": state.bad_steps,
            "seconds": state.seconds,
        }
        self.throughput.reset()
        self.record.metrics(row)
        if not report.skipped:
            self._watch(statistics)

    def _watch(self, statistics: Mapping[str, float]) -> None:
        """Warn of a collapse, or stop at it; never before the warm-up is over."""
        mode, step = self.config.monitor.collapse, self.state.step
        grace = max(self.plan.warmup_steps, math.ceil(GRACE_SHARE * self.plan.total_steps))
        if mode == "off" or step <= grace or self.config.objective.distillation_weight == 0:
            return
        message = self.state.collapse.observe(collapse_message(statistics, prototypes=self.plan.prototypes))
        if message is None:
            return
        if mode == "stop":
            raise RunFailure(f"collapse at step {step}: {message} (--monitor.collapse warn goes on)")
        logging.warn(f"collapse at step {step}: {message}")

    def _pass_time(self) -> None:
        """Add the time since the last call to the run's."""
        now = time.perf_counter()
        self.state.seconds += now - self.clock
        self.clock = now


def describe(numbers: Mapping[str, float]) -> str:
    """Write losses, learning rate and speed in one line."""
    parts = f"dino {numbers['self_distillation']:.3f}, restore {numbers['restoration']:.3f}"
    return f"loss {numbers['loss']:.3f} ({parts})  {describe_speed(numbers)}"


def _plan_values(plan: RunPlan) -> dict[str, Any]:
    """Return the plan without the reasons, which are prose."""
    return plan.model_dump(mode="json", exclude={"reasons"})


def _environment(run: RunDir) -> dict[str, Any]:
    """Return the versions and the commit that the run folder says it runs with; torch's version without such a file."""
    if not run.environment.exists():
        return {"torch": torch.__version__}
    environment: dict[str, Any] = json.loads(run.environment.read_text(encoding="utf-8"))
    return environment
