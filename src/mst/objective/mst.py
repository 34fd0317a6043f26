"""MST, one step from views to losses, in the paper's order.

Source: Li et al., "MST: Masked Self-Supervised Transformer for Visual Representation", NeurIPS 2021, section 3; letters
and formulas in docs/algorithm.md. With strategy `none` and restoration weight 0 the same lines are DINO.

Letters: B images, G global crops, L local crops, N = h*w patch tokens, K prototypes, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mst.config.schema import ObjectiveConfig
from mst.errors import UsageError
from mst.model.pair import Pair
from mst.model.tokens import Tokens
from mst.objective.dino import marginal_entropy, mean_entropy, self_distillation_loss, teacher_probabilities
from mst.objective.masking import ATTENTION_STRATEGIES, attention_mask
from mst.objective.restoration import pixel_mask, psnr, restoration_loss
from mst.views.record import Views


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


@dataclass(frozen=True)
class StepOutput:
    """What a step produced; nothing but `losses` and `reconstruction` carries a gradient.

    Attributes:
        losses: the loss and its terms.
        teacher_logits: [G, B, K]: what the center is updated with.
        teacher_probs: [G, B, K], after centering and sharpening.
        teacher_tokens: cls [G*B, D], patches [G*B, N, D], and importance [G*B, N] if the strategy needs it.
        mask: tokens hidden from the student [G*B, N], bool, or None for strategy `none`.
        reconstruction: [G*B, C, H, W], normalised pixels, or None without a restoration loss.
        statistics: scalars for the monitors by name; empty unless asked for.
    """

    losses: LossTerms
    teacher_logits: Tensor
    teacher_probs: Tensor
    teacher_tokens: Tokens
    mask: Tensor | None
    reconstruction: Tensor | None
    statistics: dict[str, Tensor]


def mst_losses(
    pair: Pair,
    views: Views,
    center: Tensor,
    values: ObjectiveValues,
    generator: torch.Generator,
    *,
    statistics: bool = False,
    std: Sequence[float] | None = None,
) -> StepOutput:
    """Compute the losses of one batch; the caller sets the compute type (autocast) and does the backward pass.

    Args:
        pair: student, teacher and image decoder.
        views: normalised crops on the device of `pair`.
        center: running mean of the teacher's logits [1, K].
        values: weights, temperatures and masking of this step.
        generator: draws the mask; one on the CPU gives the same mask on every device.
        statistics: whether to fill `StepOutput.statistics` (see `step_statistics`).
        std: what the views were normalised with, per channel, for the PSNR; None leaves it out.

    Raises:
        UsageError: a restoration weight without a decoder, or impossible masking values.
    """
    crops, batch = views.global_crops.shape[:2]
    images = views.global_crops.flatten(0, 1)  # [G*B,C,H,W]

    # The teacher sees the global crops whole, and says what matters in them.
    with torch.no_grad():
        teacher_tokens, logits = pair.teacher(images, importance=values.strategy in ATTENTION_STRATEGIES)
        teacher_logits = logits.unflatten(0, (crops, batch))  # [G,B,K]
        teacher_probs = teacher_probabilities(teacher_logits, center, values.teacher_temp)  # [G,B,K]

    # The student sees the global crops without the masked tokens, and the local crops whole.
    mask = student_mask(teacher_tokens, values, generator)  # [G*B,N] or None
    student_tokens = pair.student.backbone.tokens(images, mask, importance=False)  # patches [G*B,N,D]
    features = [student_tokens.cls]  # [G*B,D]
    if len(views.local_crops):
        features.append(pair.student.backbone(views.local_crops.flatten(0, 1)))  # [L*B,D]
    logits = pair.student.head(torch.cat(features))  # one call: BatchNorm in the head sees all crops, as in DINO
    student_logits = logits.unflatten(0, (-1, batch))  # [G+L,B,K]

    # It predicts what the teacher says of the other views, and the pixels of the global crops.
    reconstruction = restored_images(pair, student_tokens, values)  # [G*B,C,H,W] or None
    losses = loss_terms(student_logits, teacher_probs, reconstruction, images, values)

    output = StepOutput(losses, teacher_logits, teacher_probs, teacher_tokens, mask, reconstruction, {})
    return replace(output, statistics=step_statistics(output, images, std)) if statistics else output


def student_mask(teacher_tokens: Tokens, values: ObjectiveValues, generator: torch.Generator) -> Tensor | None:
    """Return the tokens to hide from the student [G*B, N], bool, or None for strategy `none`."""
    if values.strategy == "none":
        return None
    importance = teacher_tokens.importance  # [G*B,N], or None where only its shape matters
    return attention_mask(
        teacher_tokens.patches[:, :, 0] if importance is None else importance,
        strategy=values.strategy,
        eligible_fraction=values.eligible_fraction,
        mask_probability=values.mask_probability,
        generator=generator,
        grid=teacher_tokens.grid,
        masked_sample_share=values.masked_sample_share,
    )


def restored_images(pair: Pair, student_tokens: Tokens, values: ObjectiveValues) -> Tensor | None:
    """Decode masked and unmasked patch tokens to pixels [G*B, C, H, W], or None if restoration has no weight."""
    if values.restoration_weight == 0:
        return None
    if pair.decoder is None:
        raise UsageError(f"restoration_weight is {values.restoration_weight} but the pair has no decoder: build one")
    reconstruction: Tensor = pair.decoder(student_tokens.patches, student_tokens.grid)
    return reconstruction


def loss_terms(
    student_logits: Tensor,
    teacher_probs: Tensor,
    reconstruction: Tensor | None,
    images: Tensor,
    values: ObjectiveValues,
) -> LossTerms:
    """Return both losses and their weighted sum; shapes as in `mst_losses`."""
    distillation = self_distillation_loss(student_logits, teacher_probs, values.student_temp)
    total = values.distillation_weight * distillation
    if reconstruction is None:
        return LossTerms(total, distillation, torch.zeros_like(distillation))
    restoration = restoration_loss(reconstruction, images)
    return LossTerms(total + values.restoration_weight * restoration, distillation, restoration)


@torch.no_grad()
def step_statistics(output: StepOutput, images: Tensor, std: Sequence[float] | None) -> dict[str, Tensor]:
    """Return scalars for the monitors, by their names in metrics.jsonl.

    `teacher_entropy` and `marginal_entropy` (nats), `masked_share` (of all tokens of all global crops), and, with a
    reconstruction and `std`, `psnr_masked` and `psnr_visible` (dB, NaN where there is no such pixel).
    """
    statistics = {
        "teacher_entropy": mean_entropy(output.teacher_probs),
        "marginal_entropy": marginal_entropy(output.teacher_probs),
        "masked_share": torch.zeros(()) if output.mask is None else output.mask.float().mean(),
    }
    if output.reconstruction is None or std is None:
        return statistics
    tokens = output.teacher_tokens
    mask = torch.zeros_like(tokens.patches[:, :, 0], dtype=torch.bool) if output.mask is None else output.mask
    hidden = pixel_mask(mask, tokens.grid, patch_size=images.shape[-2] // tokens.grid[0])  # [G*B,1,H,W]
    statistics["psnr_masked"] = psnr(output.reconstruction, images, hidden, std)
    statistics["psnr_visible"] = psnr(output.reconstruction, images, ~hidden, std)
    return statistics
