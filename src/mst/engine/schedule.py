"""How a downstream training goes: its settings, and the learning rate of each step as a pure function.

Source: cosine after a linear warm-up as in DeiT (Touvron et al. 2021, table 9); steps at 2/3 and 11/12 of the training
as the 1x schedule of Mask R-CNN (8 and 11 of 12 epochs; He et al. 2019, "Rethinking ImageNet pre-training"); power 0.9
as in SETR (Zheng et al. 2021, section 4.1). Differs: the first step already learns, and the last one has the end value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from mst.errors import UsageError
from mst.paths import PathText, user_path
from mst.runtime.limits import check_accumulate
from mst.runtime.storage.files import check_folder

RESTART = 0.5
"""Highest rate of the steps that were added to a training, as a share of that before."""
Schedule = Literal["cosine", "steps", "poly"]
STEP_SHARES, STEP_FACTOR = (2 / 3, 11 / 12), 0.1
POWER = 0.9


@dataclass(frozen=True)
class LoopSettings:
    """What one downstream training does; whatever follows from the number of images is worked out by the caller.

    Attributes:
        steps: optimizer steps in all.
        batch_size: images per step.
        lr: highest learning rate, of a parameter group whose scale is 1.
        warmup_steps: linear warm-up to it.
        schedule: what comes after the warm-up.
        min_lr: learning rate of the last step, but for `steps`, which ends at a hundredth of `lr`.
        clip_norm: L2 norm of all gradients together is at most this; None = no clipping.
        accumulate: microbatches, nearly equal, that make one step.
        row_every: steps between two rows of metrics.
        evaluate_every: steps between two evaluations; None = only after the last step.
        max_bad_steps: so many steps in a row without a finite loss and gradient end the training.
        earlier_ends: steps, ascending, at which the training had ended before it was made longer.
    """

    steps: int
    batch_size: int
    lr: float
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    min_lr: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    row_every: int = 50
    evaluate_every: int | None = None
    max_bad_steps: int = 10
    earlier_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (("--steps", self.steps), ("--batch-size", self.batch_size), ("--accumulate", self.accumulate))
        inner = (  # no options: what a caller in Python may set
            ("row_every", self.row_every),
            ("evaluate_every", self.evaluate_every),
            ("max_bad_steps", self.max_bad_steps),
        )
        for name, count in (*counts, *inner):
            if count is not None and count < 1:
                raise UsageError(f"{name} {count}: must be at least 1")
        for name, value in (("--lr", self.lr), ("--clip-norm", self.clip_norm)):
            if value is not None and not value > 0:
                raise UsageError(f"{name} {value:g}: must be above 0")
        for name, value in (("--warmup-steps", self.warmup_steps), ("--min-lr", self.min_lr)):
            if not value >= 0:
                raise UsageError(f"{name} {value:g}: must be at least 0")
        check_accumulate(self.batch_size, self.accumulate)


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often the training state is saved.

    Attributes:
        checkpoints: folder of checkpoints; the newest there is resumed. None = none.
        checkpoint_every: steps between two.
    """

    checkpoints: PathText | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise UsageError(f"--checkpoint-every {self.checkpoint_every}: must be at least 1")
        if self.checkpoints:
            check_folder(user_path(self.checkpoints), "--checkpoints")


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Return the rate of step `step`, counted from 0, before any group's scale.

    A training that was made longer keeps the rates of its first steps. The added ones have a schedule of their own:
    half the highest rate, after a warm-up of a tenth of them at most (a warm restart, Loshchilov and Hutter 2017).
    """
    if settings.earlier_ends:
        return learning_rate(*_leg(step, settings))
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "steps":
        return settings.lr * STEP_FACTOR ** sum(step >= settings.steps * share for share in STEP_SHARES)
    last = max(settings.steps - 1 - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / last, 1.0)
    share = (1 - progress) ** POWER if settings.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * progress))
    return settings.min_lr + (settings.lr - settings.min_lr) * share


def _leg(step: int, settings: LoopSettings) -> tuple[int, LoopSettings]:
    """Return the step within its part of a lengthened training, and the settings of that part."""
    ends = (*settings.earlier_ends, settings.steps)
    number = sum(step >= end for end in settings.earlier_ends)
    begin = ends[number - 1] if number else 0
    steps = ends[number] - begin
    if not number:
        return step, replace(settings, steps=steps, earlier_ends=())
    lr, warmup = settings.lr * RESTART, min(settings.warmup_steps, steps // 10)
    min_lr = min(settings.min_lr, lr)
    return step - begin, replace(settings, steps=steps, lr=lr, min_lr=min_lr, warmup_steps=warmup, earlier_ends=())
