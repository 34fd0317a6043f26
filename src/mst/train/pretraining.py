"""Pre-training as a task of the engine: step values, the step, EMA and center, monitors, collapse, previews, export."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mst.checkpoint.compare import NOTED, interventions, refuse_changed_settings
from mst.checkpoint.format import Checkpoint
from mst.checkpoint.store import PROVISIONAL
from mst.config.load import json_text
from mst.config.schema import RunConfig, RunPlan
from mst.engine.task import Back, Intervals, Outputs, Remarks, Shards
from mst.errors import CheckpointError
from mst.model.backbone import Backbone
from mst.model.backbone_file import save_backbone
from mst.objective.records import ObjectiveValues
from mst.parallel.world import World, alone
from mst.runtime import logging
from mst.runtime.dynamics.repair import MOST_REPAIRS, Repair, write_repairs
from mst.runtime.progress import describe_speed
from mst.runtime.seeding import generator
from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.rundir import RunDir
from mst.train.compilation import eager
from mst.train.dynamics import DynamicsWatch, history, moved, with_repairs
from mst.train.guard import METRIC, KnnGuard, knn_guard
from mst.train.label_free import label_free_scores
from mst.train.monitors import collapse_message, feature_std, rankme
from mst.train.previews import preview, save_preview
from mst.train.schedule import step_values
from mst.train.shown import LatestScores
from mst.train.state import TrainState
from mst.train.step import StepReport, apply_step, step_gradients
from mst.views.normalise import as_views, normalise
from mst.views.record import Crops

Evaluator = Callable[[Backbone], Mapping[str, float]]
"""Takes the teacher's frozen backbone, returns one row of metrics (`knn_top1`, `knn_k`)."""

REPAIRS = "repairs"
"""Key of the information beside a checkpoint: how many repairs its run has had."""
PREVIEWS = 8
"""Pictures over a run, besides the first and the last."""
GRACE_SHARE = 0.1
"""Share of a run in which nothing counts as collapse; at least the warm-up."""
ROW_KEYS = (
    *("step", "epoch", "images", "loss", "self_distillation", "restoration"),
    *("lr", "weight_decay", "teacher_temp", "teacher_momentum", "grad_norm"),
    *("images_per_second", "data_wait", "memory_gb"),
    *("teacher_entropy", "marginal_entropy", "max_entropy", "feature_std", "rankme"),
    *("masked_share", "psnr_masked", "psnr_visible", "psnr_fill", "repairs", "bad_steps", "seconds"),
)
"""Keys of a row of metrics, always all of them; null where there is nothing to report."""


@dataclass
class Pretraining:
    """A pre-training, as `mst.engine.task.Task` says.

    Attributes:
        state: the networks and all that changes with them.
        source: takes the first step that is needed; yields uint8 crops, `config.train.accumulate` parts per step.
        config: the run's settings.
        plan: the run's derived values.
        run: its folder.
        dtype: compute type of the networks.
        environment: JSON types; versions and commit, kept with every checkpoint.
        evaluator: scores the teacher's backbone; None = no evaluation.
        samples: uint8 global crops [n, C, H, W] for the previews; None = no previews.
        held_out: two crops of each of n images that are not learned from, uint8 [2, n, C, H, W]; None = no scores
            without labels.
        repairs: how often the run went back to an earlier step, and what it changed then (`mst.runtime.dynamics`).
    """

    state: TrainState
    source: Callable[[int], Iterator[Crops]]
    config: RunConfig
    plan: RunPlan
    run: RunDir
    dtype: torch.dtype
    environment: Mapping[str, Any] = field(default_factory=lambda: {"torch": torch.__version__})
    evaluator: Evaluator | None = None
    samples: Tensor | None = None
    held_out: Tensor | None = None
    repairs: Sequence[Repair] = ()
    title: str = field(default="pre-training", init=False)
    buffers: Sequence[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.buffers = self.state.buffers
        self._guard: KnnGuard | None = None
        self._guard_begun = False
        self._scores: LatestScores | None = None
        self._watch = DynamicsWatch(self.config, self.plan, self.run)

    @property
    def _now(self) -> tuple[RunConfig, RunPlan]:
        """Settings and derived values of the next step: repairs move some of them."""
        return moved(self.config, self.plan, self.repairs, self.state.step)

    @property
    def too_many(self) -> str:
        """What helps where steps are not finite."""
        return (
            f"{self.run.resume_command} --optimizer.lr {self.plan.lr / 2:.3g} (or --runtime.precision fp32) goes on "
            "from the last checkpoint before them, a larger --train.max-bad-steps from here"
        )

    @property
    def intervals(self) -> Intervals:
        """How long the run is, and how often something is due."""
        config, plan, kept = self.config, self.plan, history(self.config, self.plan)
        return Intervals(
            steps=plan.total_steps,
            batch_size=plan.batch_size,
            accumulate=self.state.microbatches,
            row=config.monitor.every_steps,
            evaluation=config.monitor.knn_every_steps,
            checkpoint=min(config.checkpoint.every_steps, max(1, kept // 2)) if kept else config.checkpoint.every_steps,
            max_bad_steps=config.train.max_bad_steps,
            evaluate_first=True,
            ahead=int(self.state.center.device.type == "cuda"),
        )

    @property
    def outputs(self) -> Outputs:
        """Where the run leaves what it makes."""
        return Outputs(
            checkpoints=self.run.checkpoints,
            keep=self.config.checkpoint.keep,
            run=self.run,
            resume=self.run.resume_command,
            tensorboard=self.config.monitor.tensorboard,
            history=history(self.config, self.plan),
        )

    def batches(self, first_step: int) -> Iterator[Crops]:
        """Yield uint8 crops from step `first_step` on."""
        return self.source(first_step)

    def gradients(self, parts: Iterable[Crops], *, row_due: bool) -> StepReport:
        """Compute losses and clipped gradients; with a row due, the statistics for the monitors as well."""
        state, (config, plan) = self.state, self._now
        values = step_values(plan, config, state.step)
        mean, std, device = plan.mean, plan.std, state.center.device
        views = (as_views(crops, mean, std, device) for crops in parts)  # one microbatch at a time
        return step_gradients(state, views, values, config, plan, dtype=self.dtype, statistics=row_due)

    def apply(self, report: StepReport) -> None:
        """Change student, teacher and center."""
        config, plan = self._now
        apply_step(self.state, report, step_values(plan, config, self.state.step), config)

    def after_step(self, report: StepReport, *, row_due: bool) -> Remarks:
        """Count the losses, and where a row is due look for collapse and for other things that go wrong."""
        state = self.state
        config, plan = moved(self.config, self.plan, self.repairs, state.step - 1)
        values = step_values(plan, config, state.step - 1)
        if not report.skipped:
            state.features.push(report.features)
            state.means.add(report.scalars())
        shown = {"lr": values.lr, **report.scalars()}
        if not row_due:
            return Remarks(shown=shown)
        features = state.features.features()
        statistics = dict(report.statistics)
        if len(features):
            statistics |= {"feature_std": feature_std(features).item(), "rankme": rankme(features).item()}
        row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
        row |= {
            "epoch": state.step / self.plan.steps_per_epoch,
            "images": state.step * self.plan.batch_size,
            **state.means.take(),
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "teacher_temp": values.teacher_temp,
            "teacher_momentum": values.teacher_momentum,
            **statistics,
            "max_entropy": math.log(self.plan.prototypes),
            "repairs": len(self.repairs),
        }
        lines, repair = self._watch.observe({**row, "step": state.step}, config, plan, len(self.repairs))
        if repair is not None:
            return Remarks(row, shown, warnings=lines, back=self._way_back(repair))
        message, ends = (None, False) if report.skipped else self._collapse(statistics)
        failure = message if ends else None
        return Remarks(row, shown, warnings=[*lines, *([message] if message and not ends else [])], failure=failure)

    def _way_back(self, repair: Repair) -> Back:
        """Return how the run goes back to where a repair wants it to."""

        def note(step: int) -> None:
            done = replace(repair, back=step)
            self.repairs = (*self.repairs, done)
            self.plan = with_repairs(self.plan, self.repairs)
            if World.current().first:
                write_repairs(self.run, self.repairs)
                write_atomic(self.run.plan, json_text(self.plan))
            logging.warn(
                f"repair {done.number} of at most {MOST_REPAIRS}: back from step {done.found} to step {step}, "
                f"and on with {done.words}"
            )

        def restore(checkpoint: Checkpoint) -> None:
            spent = self.state.seconds
            self.state.load(checkpoint.parts)
            self.state.seconds = spent  # the abandoned steps took their time
            self._watch.forget(self.plan)
            self._scores = None

        return Back(repair.back, repair.number, note, restore, "start anew with " + repair.words)

    def evaluate(self) -> Remarks | None:
        """Score the teacher's backbone with and without labels, and compare with trained weights at the start."""
        divided = self.state.replicas.divides  # then only the first process has a whole network
        if (self.evaluator is None and self.held_out is None) or (divided and not World.current().first):
            return None
        with eager(), alone() if divided else nullcontext():
            numbers = self._measure()
        self._watch.note({"step": self.state.step, **numbers})
        scores = self._latest()
        scores.observe(self.state.step, numbers)
        if World.current().first:
            logging.info(f"step {self.state.step}: {scores}")
        if METRIC not in numbers:
            return Remarks(numbers)
        if not self._guard_begun:  # not before: what it compares with is in the run's record
            self._guard, self._guard_begun = knn_guard(self.config, self.run, step=self.state.step), True
        message = self._guard.observe(numbers[METRIC], self.state.step) if self._guard is not None else None
        if message is not None and self.config.monitor.guard == "stop":
            again = f"{self.run.resume_command} --monitor.guard warn goes on all the same"
            return Remarks(numbers, failure=f"{message}; {again}")
        return Remarks(numbers, warnings=[] if message is None else [message])

    def _measure(self) -> dict[str, float]:
        """Return the numbers of an evaluation."""
        pair, numbers = self.state.replicas.whole, dict[str, float]()
        if self.evaluator is not None:
            numbers |= self.evaluator(pair.teacher.backbone)
        if self.held_out is not None:
            numbers |= label_free_scores(
                pair,
                self.held_out,
                restores=pair.decoder is not None and self.config.objective.strategy != "none",
                mean=self.plan.mean,
                std=self.plan.std,
                dtype=self.dtype,
            )
        return numbers

    def _latest(self) -> LatestScores:
        """Return the scores for the screen; those before a resume are in the run's rows."""
        if self._scores is None:
            self._scores = LatestScores(self.run, step=self.state.step)
        return self._scores

    def describe(self, shown: Mapping[str, float]) -> str:
        """Write losses, learning rate and speed, and in a line of its own what the latest evaluation gave."""
        return "\n".join(filter(None, [describe(shown), str(self._latest())]))

    def draw(self, *, missing_only: bool) -> None:
        """Draw the sample images as method and networks see them now."""
        path = self.run.previews / f"step_{self.state.step:07d}.png"
        if missing_only:  # those beyond are of steps that the run has not done
            for beyond in (file for file in self.run.previews.glob("step_*.png") if file.name > path.name):
                beyond.unlink()
        if self.samples is None or not self._preview_due(self.state.step) or (missing_only and path.exists()):
            return
        mean, std = self.plan.mean, self.plan.std
        with eager():
            picture = preview(
                self.state.replicas.whole,
                normalise(self.samples.to(self.state.center.device), mean, std),
                ObjectiveValues.from_config(self.config.objective, teacher_temp=self.plan.teacher_temp),
                generator(self.config.runtime.seed, "preview"),
                mean=mean,
                std=std,
                dtype=self.dtype,
            )
        save_preview(path, picture)

    def export(self) -> None:
        """Write the teacher's backbone."""
        metadata = {
            "recipe": self.config.recipe,
            "step": self.state.step,
            "mean": list(self.plan.mean),
            "std": list(self.plan.std),
            **({} if self.plan.value_ranges is None else {"value_ranges": self.plan.value_ranges}),
            "init": self.config.model.init,
            "positions": self.config.model.positions,
        }
        save_backbone(self.run.backbone, self.state.replicas.whole.teacher.backbone, metadata)

    @property
    def shards(self) -> Shards | None:
        """How divided networks are saved."""
        shards: Shards | None = self.state.replicas.shards
        return shards

    def collect(self) -> None:
        """Bring the networks to the first process."""
        self.state.replicas.collect()

    def state_dicts(self) -> dict[str, dict[str, Any]]:
        """Return networks, optimizer and progress."""
        return self.state.state_dicts()

    def info(self) -> dict[str, Any]:
        """Return settings, derived values and environment."""
        config = self.config.model_dump(mode="json")
        return {
            "config": config,
            "plan": _plan_values(self.plan),
            "environment": dict(self.environment),
            REPAIRS: len(self.repairs),
        }

    def wants(self, checkpoint: Checkpoint) -> bool:
        """With other settings than led to skipped steps, go on from before them; never from abandoned ones."""
        if self.abandoned(checkpoint.step, checkpoint.info):
            return False
        changed = interventions(_section(checkpoint, "config"), self.config.model_dump())
        return not (changed and checkpoint.info.get(PROVISIONAL))

    def abandoned(self, step: int, info: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of steps that a repair has left."""
        known = info.get(REPAIRS, 0)
        return any(step > repair.back for repair in self.repairs[known if isinstance(known, int) else 0 :])

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint of this run; changes of settings that are no definition of it are noted in the plan.

        Raises:
            CheckpointError: settings that define the run have changed, or its parts do not fit; nothing has changed.
        """
        config, plan = (_section(checkpoint, key) for key in ("config", "plan"))
        changed = interventions(config, self.config.model_dump())
        usual = RunConfig().model_dump(mode="json")
        refuse_changed_settings(config, self.config.model_dump(), free=changed, usual=usual)
        refuse_changed_settings(plan, _plan_values(self.plan), free=["lr"] if changed else ())
        self.state.load(checkpoint.parts)
        noted = tuple(row for row in plan.get(NOTED, ()) if "repair" not in row)
        if changed:
            noted = (*noted, {"step": self.state.step, "changed": changed})
            said = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changed.items())
            logging.warn(f"from step {self.state.step} on with {said}; plan.json notes it")
        self.plan = with_repairs(self.plan.model_copy(update={NOTED: noted}), self.repairs)
        self._watch.forget(self.plan)
        logging.info(f"resuming {self.run.root} at step {self.state.step} of {self.plan.total_steps}")

    def _preview_due(self, step: int) -> bool:
        if step in {0, self.plan.total_steps}:
            return True
        every = self.config.checkpoint.every_steps
        checkpoints = self.plan.total_steps // every
        return step % every == 0 and step // every % max(1, checkpoints // PREVIEWS) == 0

    def _collapse(self, statistics: Mapping[str, float]) -> tuple[str | None, bool]:
        """Return what has collapsed, or None, and whether that ends the run; never before the warm-up is over."""
        mode, step, watch = self.config.monitor.collapse, self.state.step, self.state.collapse
        grace = max(self.plan.warmup_steps, math.ceil(GRACE_SHARE * self.plan.total_steps))
        if mode == "off" or step <= grace or self.config.objective.distillation_weight == 0:
            return None, False
        found = collapse_message(statistics, prototypes=self.plan.prototypes)
        message = watch.observe(found)
        if mode == "stop" and watch.lasts:  # a run that stopped at it and was resumed stops again
            again = f"{self.run.resume_command} --monitor.collapse warn goes on all the same"
            return f"collapse at step {step}: {found}; {again}", True
        return (None if message is None else f"collapse at step {step}: {message}"), False


def describe(numbers: Mapping[str, float]) -> str:
    """Write losses, learning rate and speed in one line."""
    parts = f"dino {numbers['self_distillation']:.3f}, restore {numbers['restoration']:.3f}"
    return f"loss {numbers['loss']:.3f} ({parts})  {describe_speed(numbers)}"


def _section(checkpoint: Checkpoint, key: str) -> Mapping[str, Any]:
    """Return what a checkpoint of a pre-training holds beside its parts.

    Raises:
        CheckpointError: it is of something else.
    """
    found = checkpoint.info.get(key)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{checkpoint.path} is no checkpoint of a pre-training: it has no {key}")
    return found


def _plan_values(plan: RunPlan) -> dict[str, Any]:
    """Return the plan without the reasons, which are prose."""
    return plan.model_dump(mode="json", exclude={"reasons"})
