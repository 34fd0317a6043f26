"""Schedules as pure functions from step to value; the shapes are DINO's (Caron et al. 2021, section 3.2).

Differs from DINO: every schedule moves per step, the teacher's temperature too, and the last step has the end value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mst.config.schema import RunConfig, RunPlan


@dataclass(frozen=True)
class StepValues:
    """What one optimizer step uses.

    Attributes:
        lr: learning rate of AdamW.
        weight_decay: decay of the tensors that have one.
        teacher_temp: temperature of the teacher's softmax.
        teacher_momentum: EMA momentum of the teacher, higher = slower.
        freeze_last_layer: whether the prototypes keep still.
        freeze_backbone: whether the backbone keeps still, all but its mask token.
    """

    lr: float
    weight_decay: float
    teacher_temp: float
    teacher_momentum: float
    freeze_last_layer: bool
    freeze_backbone: bool = False


def cosine(step: int, *, start: float, end: float, total_steps: int) -> float:
    """Return half a cosine from `start` at step 0 to `end` at step `total_steps - 1`, and `end` from there on."""
    progress = step / (total_steps - 1) if step < total_steps - 1 else 1.0
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_warmup(step: int, *, start: float, end: float, warmup_steps: int) -> float:
    """Return a line from `start` at step 0 to `end` at step `warmup_steps`, and `end` from there on."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def linear_warmup_cosine(step: int, *, peak: float, end: float, warmup_steps: int, total_steps: int) -> float:
    """Return a line from 0 to `peak` at step `warmup_steps`, then half a cosine to `end` at the last step."""
    if step < warmup_steps:
        return linear_warmup(step, start=0.0, end=peak, warmup_steps=warmup_steps)
    return cosine(step - warmup_steps, start=peak, end=end, total_steps=total_steps - warmup_steps)


def step_values(plan: RunPlan, config: RunConfig, step: int) -> StepValues:
    """Return the values of step `step`, counted from 0, of `plan.total_steps`."""
    optimizer, total = config.optimizer, plan.total_steps
    return StepValues(
        lr=linear_warmup_cosine(
            step, peak=plan.lr, end=optimizer.min_lr, warmup_steps=plan.warmup_steps, total_steps=total
        ),
        weight_decay=cosine(step, start=optimizer.weight_decay, end=optimizer.weight_decay_end, total_steps=total),
        teacher_temp=linear_warmup(
            step,
            start=plan.teacher_temp_start,
            end=plan.teacher_temp,
            warmup_steps=plan.teacher_temp_warmup_steps,
        ),
        teacher_momentum=cosine(
            step, start=plan.teacher_momentum, end=config.objective.teacher_momentum_end, total_steps=total
        ),
        freeze_last_layer=step < plan.freeze_last_layer_steps,
        freeze_backbone=step < plan.freeze_backbone_steps,
    )
