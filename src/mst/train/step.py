"""One optimizer step, in the paper's order: losses, gradients, clip, AdamW, teacher, center.

Source: Li et al. 2021 (MST), section 3; Caron et al. 2021 (DINO), algorithm 1. Differs in that a step whose loss or
gradient is not finite leaves everything as it was.

Letters: B images, G global crops, K prototypes, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mst.config.schema import RunConfig, RunPlan
from mst.engine.guard import StepGuard
from mst.model.pair import ema_update
from mst.objective.dino import updated_center
from mst.objective.draws import StepDraws
from mst.objective.mst import mst_losses
from mst.objective.records import ObjectiveValues, StepOutput
from mst.objective.statistics import statistic_sums, statistics_of
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
        indices: dataset positions of the images that this process worked on, on the CPU.
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
    pair, device, replicas = state.pair, state.center.device, state.replicas
    objective = ObjectiveValues.from_config(config.objective, teacher_temp=values.teacher_temp)
    rows = _Rows(plan.batch_size)
    replicas.begin()
    for number, views in enumerate(passes, start=1):
        positions = rows.positions_of(views)
        draws = StepDraws(config.runtime.seed, state.step, positions, plan.batch_size)
        replicas.begin_microbatch(last=number == state.microbatches)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = mst_losses(
                *(pair, views, state.center, objective, draws),
                backward=_Backward(len(views.indices) / plan.batch_size, device),
                replicas=replicas,
                keep=statistics,
            )
        rows.add(output, views, positions)
        sums = _sums(output, share=len(views.indices) / plan.batch_size)
        if statistics:
            sums |= statistic_sums(output, views.global_crops.flatten(0, 1), plan.std)
        replicas.end_microbatch(sums)
    features = rows.features(pair.student.backbone.embed_dim, device)
    total = replicas.finish(features)
    if values.freeze_last_layer:
        _forget_gradients(pair.student.head.prototypes, pair.student.head.gain)
    if values.freeze_backbone:
        _forget_gradients(*pair.student.backbone.model.parameters())
    norms = clip_per_tensor_(state.parameters, config.optimizer.clip, replicas.norms)
    return _report(total, norms, rows, features)


def apply_step(state: TrainState, report: StepReport, values: StepValues, config: RunConfig) -> None:
    """Let the student learn from its gradients, the teacher follow, and the center move to the batch's logits."""
    set_step_values(state.optimizer, lr=values.lr, weight_decay=values.weight_decay)
    state.optimizer.step()
    ema_update(state.pair.teacher, state.pair.student, values.teacher_momentum)
    state.center.copy_(updated_center(state.center, report.logits, config.objective.center_momentum))


@dataclass(frozen=True)
class _Backward:
    """Adds the gradients of `share` times a loss, outside of autocast."""

    share: float
    device: torch.device

    def __call__(self, loss: Tensor) -> None:
        with torch.autocast(self.device.type, enabled=False):
            (loss * self.share).backward()  # type: ignore[no-untyped-call]


class _Rows:
    """Collects what is known of each image of a batch, a microbatch at a time."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self._seen = batch_size, 0
        self._found: list[tuple[range, Tensor, Tensor]] = []

    def positions_of(self, views: Views) -> range:
        """Return the positions in the batch of the microbatch that comes next."""
        first, self._seen = self._seen, self._seen + len(views.indices)
        return range(first, self._seen) if views.positions is None else views.positions

    def add(self, output: StepOutput, views: Views, positions: range) -> None:
        """Keep one microbatch's indices, and its features of the first global crop [b, D]."""
        self._found.append((positions, views.indices.cpu(), output.teacher.cls[: len(positions)].float()))

    def indices(self) -> Tensor:
        """Return the images' dataset positions, on the CPU."""
        return torch.cat([indices for _, indices, _ in self._found])

    def features(self, width: int, device: torch.device) -> Tensor:
        """Return the features by position in the batch [B, D], zero where another process has them."""
        rows = torch.zeros(self._batch_size, width, device=device)
        for positions, _, features in self._found:
            rows[positions.start : positions.stop] = features
        return rows


def _sums(output: StepOutput, *, share: float) -> dict[str, Tensor]:
    """Return the losses [3] and the teacher's mean logits [1, 1, K], times the microbatch's share of the batch."""
    terms = output.losses
    losses = torch.stack([terms.total, terms.self_distillation, terms.restoration]).detach()
    return {"losses": share * losses, "logits": share * output.teacher_logits.mean(dim=(0, 1), keepdim=True)}


def _report(sums: dict[str, Tensor], norms: Tensor, rows: _Rows, features: Tensor) -> StepReport:
    """Return the batch's numbers; one transfer from the device, and one more with statistics."""
    losses, logits = sums.pop("losses"), sums.pop("logits")
    total, distillation, restoration, norm = torch.cat([losses, norms.norm()[None]]).tolist()
    return StepReport(
        loss=total,
        self_distillation=distillation,
        restoration=restoration,
        grad_norm=norm,
        skipped=not (math.isfinite(total) and math.isfinite(norm)),
        indices=rows.indices(),
        features=features,
        logits=logits,
        statistics=statistics_of(sums) if sums else {},
    )


def _forget_gradients(*parameters: nn.Parameter) -> None:
    """Leave parameters out of this optimizer step, weight decay included."""
    for parameter in parameters:
        parameter.grad = None
