"""One optimizer step, in the paper's order: losses, gradients, clip, AdamW, teacher, center.

Source: Li et al. 2021 (MST), section 3; Caron et al. 2021 (DINO), algorithm 1. Differs in that a step whose loss or
gradient is not finite leaves everything as it was.

Letters: B images, G global crops, K prototypes, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mst.config.schema import RunConfig, RunPlan
from mst.engine.guard import StepGuard
from mst.model.pair import ema_update
from mst.objective.dino import updated_center
from mst.objective.draws import StepDraws
from mst.objective.mst import mst_losses
from mst.objective.records import ObjectiveValues, StepOutput
from mst.parallel.world import World
from mst.train.optimizer import clip_per_tensor_, set_step_values
from mst.train.schedule import StepValues
from mst.train.state import TrainState
from mst.views.record import Views


@dataclass(frozen=True)
class StepReport:
    """What one step was.

    Attributes:
        loss, self_distillation, restoration: over the whole batch.
        grad_norm: L2 norm of all gradients together, before clipping.
        skipped: whether something was not finite, so that nothing was changed.
        indices: dataset positions of the batch [B], on the CPU.
        features: the teacher's features of the first global crop [B, D].
        logits: the teacher's mean logits [1, 1, K].
        statistics: scalars for the monitors by name; empty unless asked for.
    """

    loss: float
    self_distillation: float
    restoration: float
    grad_norm: float
    skipped: bool
    indices: Tensor
    features: Tensor
    logits: Tensor
    statistics: dict[str, float]

    def scalars(self) -> dict[str, float]:
        """Return the losses and the gradient norm by their names in metrics.jsonl."""
        return {
            "loss": self.loss,
            "self_distillation": self.self_distillation,
            "restoration": self.restoration,
            "grad_norm": self.grad_norm,
        }


def train_step(
    state: TrainState,
    passes: Iterable[Views],
    values: StepValues,
    config: RunConfig,
    plan: RunPlan,
    *,
    dtype: torch.dtype,
    statistics: bool = False,
) -> StepReport:
    """Do one optimizer step, whole or not at all; `state.step` is left to the caller.

    Args:
        state: changed in place.
        passes: normalised crops on the networks' device; the parts of one batch, one forward-backward pass each.
        values: this step's learning rate and the like.
        config: gives the objective, the clipping and the seed.
        plan: gives the batch size and the normalisation.
        dtype: compute type of the networks; parameters stay float32.
        statistics: whether to fill `StepReport.statistics`.
    """
    report = StepGuard(state.buffers).gradients(
        lambda: step_gradients(state, passes, values, config, plan, dtype=dtype, statistics=statistics)
    )
    if not report.skipped:
        apply_step(state, report, values, config)
    return report


def step_gradients(
    state: TrainState,
    passes: Iterable[Views],
    values: StepValues,
    config: RunConfig,
    plan: RunPlan,
    *,
    dtype: torch.dtype,
    statistics: bool,
) -> StepReport:
    """Compute the clipped gradients of the mean loss over a batch, a part at a time; arguments as of `train_step`."""
    pair, device = state.pair, state.center.device
    objective = ObjectiveValues.from_config(config.objective, teacher_temp=values.teacher_temp)
    sums = _BatchSums(plan.batch_size, torch.zeros(3, device=device), torch.zeros_like(state.center)[None])

    state.replicas.forget_gradients()
    for views in passes:
        draws = StepDraws(config.runtime.seed, state.step, sums.positions_of(views), plan.batch_size)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = mst_losses(
                *(pair, views, state.center, objective, draws),
                backward=_Backward(len(views.indices) / plan.batch_size, device),
                replicas=state.replicas,
                statistics=statistics,
                std=plan.std,
            )
        sums.add(output, views)
    state.replicas.gather_gradients()

    if values.freeze_last_layer:
        _forget_gradients(pair.student.head.prototypes, pair.student.head.gain)
    if values.freeze_backbone:
        _forget_gradients(*pair.student.backbone.model.parameters())
    return sums.report(clip_per_tensor_(state.parameters, config.optimizer.clip))


def apply_step(state: TrainState, report: StepReport, values: StepValues, config: RunConfig) -> None:
    """Let the student learn from its gradients, the teacher follow, and the center move to the batch's logits."""
    set_step_values(state.optimizer, lr=values.lr, weight_decay=values.weight_decay)
    state.optimizer.step()
    ema_update(state.pair.teacher, state.pair.student, values.teacher_momentum)
    state.center.copy_(
        World.current().mean(updated_center(state.center, report.logits, config.objective.center_momentum))
    )


@dataclass(frozen=True)
class _Backward:
    """Adds the gradients of `share` times a loss, outside of autocast."""

    share: float
    device: torch.device

    def __call__(self, loss: Tensor) -> None:
        with torch.autocast(self.device.type, enabled=False):
            (loss * self.share).backward()  # type: ignore[no-untyped-call]


@dataclass
class _BatchSums:
    """Adds the parts of one batch, each weighted with its share of the images."""

    batch_size: int
    losses: Tensor  # [3]: total, self-distillation, restoration
    logits: Tensor  # [1, 1, K]: the teacher's mean logits
    indices: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def positions_of(self, views: Views) -> range:
        """Return the positions in the batch of the part that comes next."""
        first = sum(map(len, self.indices))
        return range(first, first + len(views.indices))

    def add(self, output: StepOutput, views: Views) -> None:
        """Count one part."""
        images = len(views.indices)
        share = images / self.batch_size
        terms = output.losses
        self.losses += share * torch.stack([terms.total, terms.self_distillation, terms.restoration]).detach()
        self.logits += share * output.teacher_logits.mean(dim=(0, 1), keepdim=True)
        self.indices.append(views.indices.cpu())
        self.features.append(output.teacher.cls[:images].float())  # [B, D] of the first global crop
        for name, value in output.statistics.items():
            self.statistics[name] = self.statistics.get(name, torch.zeros_like(value)) + share * value

    def report(self, norms: Tensor) -> StepReport:
        """Return the batch's numbers; one transfer from the device."""
        total, distillation, restoration, norm = torch.cat([self.losses, norms.norm()[None]]).tolist()
        return StepReport(
            loss=total,
            self_distillation=distillation,
            restoration=restoration,
            grad_norm=norm,
            skipped=not (math.isfinite(total) and math.isfinite(norm)),
            indices=torch.cat(self.indices),
            features=torch.cat(self.features),
            logits=self.logits,
            statistics={name: value.item() for name, value in self.statistics.items()},
        )


def _forget_gradients(*parameters: nn.Parameter) -> None:
    """Leave parameters out of this optimizer step, weight decay included."""
    for parameter in parameters:
        parameter.grad = None
