"""The records of one step of MST: its numbers, what the student sees in one part, and what comes out.

Letters: B images, G global crops, N = h*w patch tokens, D embedding size, K prototypes, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mst.config.schema import ObjectiveConfig
from mst.model.tokens import Summary

Backward = Callable[[Tensor], None]
"""What is called with a part of the loss, to differentiate it."""


@dataclass(frozen=True)
class ObjectiveValues:
    """The numbers of one step; `mst.config.schema.ObjectiveConfig` explains each."""

    strategy: str
    eligible_fraction: float
    mask_probability: float
    masked_sample_share: float
    student_temp: float
    teacher_temp: float
    distillation_weight: float
    restoration_weight: float

    @classmethod
    def from_config(cls, config: ObjectiveConfig, *, teacher_temp: float) -> ObjectiveValues:
        """Take everything from `config` but the teacher's temperature, which follows a schedule."""
        return cls(
            strategy=config.strategy,
            eligible_fraction=config.eligible_fraction,
            mask_probability=config.mask_probability,
            masked_sample_share=config.masked_sample_share,
            student_temp=config.student_temp,
            teacher_temp=teacher_temp,
            distillation_weight=config.distillation_weight,
            restoration_weight=config.restoration_weight,
        )


@dataclass(frozen=True)
class LossTerms:
    """Float32 scalars: `total` is the weighted sum that carries the gradient, the two terms are unweighted."""

    total: Tensor
    self_distillation: Tensor
    restoration: Tensor

    def detach(self) -> LossTerms:
        """Return the numbers without their graph."""
        return LossTerms(self.total.detach(), self.self_distillation.detach(), self.restoration.detach())

    def plus(self, other: LossTerms) -> LossTerms:
        """Return the sums."""
        return LossTerms(
            self.total + other.total,
            self.self_distillation + other.self_distillation,
            self.restoration + other.restoration,
        )


class BatchCounts(NamedTuple):
    """What the losses are means over: images of the whole batch, its global crops an image, its pairs of views."""

    images: int
    global_crops: int
    pairs: int


class CropSet(NamedTuple):
    """Crops of one size that the student sees in one pass.

    Attributes:
        crops: [n, B, C, H, W].
        mask: tokens hidden from the student [n*B, N], or None.
        targets: what it should predict of each [n, B, K], or [1, B, K] where that is the same for all.
        first: number of the first of them among the crops of an image.
        whole: whether they are global crops, which are also restored.
    """

    crops: Tensor
    mask: Tensor | None
    targets: Tensor
    first: int
    whole: bool


@dataclass(frozen=True)
class StepOutput:
    """What a step produced; nothing but `losses` carries a gradient, and not even that after `backward`.

    Attributes:
        losses: the loss and its terms.
        teacher_logits: [G, B, K]: what the center is updated with.
        teacher_probs: [G, B, K], after centering and sharpening.
        teacher: features [G*B, D], grid, and importance [G*B, N] if the strategy needs it.
        mask: tokens hidden from the student [G*B, N], bool, or None for strategy `none`.
        reconstruction: [G*B, C, H, W], normalised pixels; None without a restoration loss, or if it was not to be kept.
    """

    losses: LossTerms
    teacher_logits: Tensor
    teacher_probs: Tensor
    teacher: Summary
    mask: Tensor | None
    reconstruction: Tensor | None
