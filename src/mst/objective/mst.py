"""MST, one step from views to losses, in the paper's order.

Source: Li et al., "MST: Masked Self-Supervised Transformer for Visual Representation", NeurIPS 2021, section 3; letters
and formulas in docs/algorithm.md. With strategy `none` and restoration weight 0 the same lines are DINO.

Letters: B images, G global crops, L local crops, N = h*w patch tokens, K prototypes, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mst.config.schema import ObjectiveConfig
from mst.errors import UsageError
from mst.model.pair import Pair
from mst.model.stochastic_depth import branch_draws
from mst.model.tokens import Summary, Tokens
from mst.objective.dino import count_pairs, marginal_entropy, mean_entropy, teacher_probabilities, view_targets
from mst.objective.draws import StepDraws
from mst.objective.masking import ATTENTION_STRATEGIES, attention_mask
from mst.objective.prototypes import prototype_cross_entropy
from mst.objective.replicas import Replicas
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
        reconstruction: [G*B, C, H, W], normalised pixels; None without a restoration loss or without statistics.
        statistics: scalars for the monitors by name; empty unless asked for.
    """

    losses: LossTerms
    teacher_logits: Tensor
    teacher_probs: Tensor
    teacher: Summary
    mask: Tensor | None
    reconstruction: Tensor | None
    statistics: dict[str, Tensor]


def mst_losses(
    pair: Pair,
    views: Views,
    center: Tensor,
    values: ObjectiveValues,
    draws: StepDraws,
    *,
    backward: Callable[[Tensor], None] | None = None,
    replicas: Replicas | None = None,
    statistics: bool = False,
    std: Sequence[float] | None = None,
) -> StepOutput:
    """Compute the losses of one batch; the caller sets the compute type (autocast).

    The loss is a sum over the student's views, which meet only in a head with BatchNorm. So with `backward`, each part
    is differentiated as soon as it is known, and the images can be shared out to replicas of the pair.

    Args:
        pair: student, teacher and image decoder.
        views: normalised crops on the device of `pair`.
        center: running mean of the teacher's logits [1, K].
        values: weights, temperatures and masking of this step.
        draws: masks and stochastic depth of these images.
        backward: called with each part of the total, which then carries no gradient; None = the caller differentiates.
        replicas: of `pair`, which is the first of them; None = it is the only one.
        statistics: whether to fill `StepOutput.statistics` (see `step_statistics`).
        std: what the views were normalised with, per channel, for the PSNR; None leaves it out.

    Raises:
        UsageError: a restoration weight without a decoder, or impossible masking values.
    """
    replicas = replicas or Replicas(pair)
    crops, batch = views.global_crops.shape[:2]

    # The teacher sees the global crops whole, and says what matters in them.
    with torch.no_grad():
        seen = replicas.run(lambda pair, share: teacher_view(pair, shared(views, share), values), batch)
        teacher = whole_summary([summary for summary, _ in seen], crops)
        teacher_logits = torch.cat([logits for _, logits in seen], dim=1)  # [G,B,K]
        teacher_probs = teacher_probabilities(teacher_logits, center, values.teacher_temp)  # [G,B,K]

    # The student sees the global crops without the masked tokens, and the local crops whole. It predicts what the
    # teacher says of the other views, and the pixels of the global crops.
    mask = student_mask(teacher, values, draws)  # [G*B,N] or None

    def student_of(pair: Pair, share: slice) -> tuple[LossTerms, Tensor | None]:
        hidden = None if mask is None else mask.view(crops, batch, -1)[:, share].flatten(0, 1)
        own, targets, drawn = shared(views, share), teacher_probs[:, share], draws.of(share)
        return student_view(
            pair, own, hidden, targets, values, draws=drawn, batch=batch, backward=backward, pixels=statistics
        )

    predicted = replicas.run(student_of, batch)
    losses = reduce(LossTerms.plus, (terms for terms, _ in predicted))
    reconstruction = whole([pixels for _, pixels in predicted], crops)
    output = StepOutput(losses, teacher_logits, teacher_probs, teacher, mask, reconstruction, {})
    if not statistics:
        return output
    return replace(output, statistics=step_statistics(output, views.global_crops.flatten(0, 1), std))


def shared(views: Views, share: slice) -> Views:
    """Return the crops of some images."""
    return Views(views.global_crops[:, share], views.local_crops[:, share], views.indices[share])


def whole(shares: Sequence[Tensor | None], crops: int) -> Tensor | None:
    """Put shares of the images [G*b, ...] together again [G*B, ...]; None if one is None."""
    found = [share.view(crops, -1, *share.shape[1:]) for share in shares if share is not None]
    return torch.cat(found, dim=1).flatten(0, 1) if len(found) == len(shares) else None


def whole_summary(shares: Sequence[Summary], crops: int) -> Summary:
    """Put the teacher's words on shares of the images together again."""
    cls = whole([share.cls for share in shares], crops)  # [G*B,D]
    assert cls is not None
    return Summary(cls, shares[0].grid, whole([share.importance for share in shares], crops))


def teacher_view(pair: Pair, views: Views, values: ObjectiveValues) -> tuple[Summary, Tensor]:
    """Return the teacher's summary of the global crops, with importance if the mask needs it, and logits [G, B, K]."""
    images = views.global_crops.flatten(0, 1)  # [G*B,C,H,W]
    summary = pair.teacher.backbone.summary(images, importance=values.strategy in ATTENTION_STRATEGIES)
    logits: Tensor = pair.teacher.head(summary.cls)
    return summary, logits.view(*views.global_crops.shape[:2], -1)


def student_view(
    pair: Pair,
    views: Views,
    mask: Tensor | None,
    teacher_probs: Tensor,
    values: ObjectiveValues,
    *,
    draws: StepDraws,
    batch: int,
    backward: Callable[[Tensor], None] | None,
    pixels: bool,
) -> tuple[LossTerms, Tensor | None]:
    """Return the losses of some images of a batch, and with `pixels` the reconstruction [G*b, C, H, W] or None.

    Args:
        pair: only its student and decoder are used.
        views: crops of b images.
        mask: tokens hidden in the global crops [G*b, N], or None.
        teacher_probs: [G, b, K].
        values: as in `mst_losses`.
        draws: of these images.
        batch: B, images of the whole batch: the losses of its shares add up to its losses.
        backward: as in `mst_losses`.
        pixels: whether to keep the reconstruction.
    """
    crops = len(views.global_crops)
    pairs = count_pairs(crops, crops + len(views.local_crops))
    share = len(views.indices) / batch
    parts, reconstructions = [], []
    for part in student_parts(views, mask, teacher_probs, together=pair.student.head.couples_images):
        distillation, reconstruction = student_losses(pair, part, values, draws)
        terms = loss_terms(distillation / (pairs * batch), reconstruction, part, share / crops, values)
        if backward is not None:
            backward(terms.total)
            terms = terms.detach()
        parts.append(terms)
        if pixels and reconstruction is not None:
            reconstructions.append(reconstruction.detach())
    return reduce(LossTerms.plus, parts), torch.cat(reconstructions) if reconstructions else None


def student_parts(
    views: Views, mask: Tensor | None, teacher_probs: Tensor, *, together: bool
) -> Iterator[tuple[CropSet, ...]]:
    """Yield what the student sees, in parts that share nothing: each global crop, then all local crops.

    Args:
        views: as in `mst_losses`.
        mask: tokens hidden in the global crops [G*B, N], or None.
        teacher_probs: [G, B, K].
        together: make one part of all, because the head's BatchNorm looks at all crops of the batch, as in DINO.
    """
    of_globals, of_locals = view_targets(teacher_probs)  # [G,B,K], [1,B,K]
    everything = CropSet(views.global_crops, mask, of_globals, 0, True)
    crops = len(views.global_crops)
    local = (CropSet(views.local_crops, None, of_locals, crops, False),) if len(views.local_crops) else ()
    if together:
        yield (everything, *local)
        return
    masks = [None] * crops if mask is None else mask.chunk(crops)
    for first, (crop, hidden, targets) in enumerate(zip(views.global_crops, masks, of_globals, strict=True)):
        yield (CropSet(crop[None], hidden, targets[None], first, True),)
    if local:
        yield local


def student_losses(
    pair: Pair, part: tuple[CropSet, ...], values: ObjectiveValues, draws: StepDraws
) -> tuple[Tensor, Tensor | None]:
    """Run the student on one part.

    Returns:
        The cross-entropies summed over crops, images and the teacher's views, and the reconstruction of the global
        crops [n*B, C, H, W], or None.
    """
    features, reconstruction, head = [], None, pair.student.head
    for crops, mask, _, first, whole in part:
        images = crops.flatten(0, 1)  # [n*B,C,H,W]
        with branch_draws(partial(draws.from_crop(first).uniform, "depth")):
            if whole and values.restoration_weight != 0:
                tokens = pair.student.backbone.tokens(images, mask, importance=False)  # patches [n*B,N,D]
                reconstruction = restored_images(pair, tokens, values)  # [n*B,C,H,W]
                features.append(tokens.cls)  # [n*B,D]
            else:
                features.append(pair.student.backbone.summary(images, mask, importance=False).cls)
    vectors = torch.split(head.vectors(torch.cat(features)), [len(x) for x in features])  # each [n*B,d]
    prototypes = head.directions()  # [K,d]
    terms = [
        prototype_cross_entropy(x.view(*crops.shape[:2], -1), prototypes, targets, values.student_temp)
        for x, (crops, _, targets, _, _) in zip(vectors, part, strict=True)
    ]
    return torch.stack(terms).sum(), reconstruction


def student_mask(
    teacher: Summary | Tokens, values: ObjectiveValues, generator: torch.Generator | StepDraws
) -> Tensor | None:
    """Return the tokens to hide from the student [G*B, N], bool, or None for strategy `none`."""
    if values.strategy == "none":
        return None
    importance = teacher.importance  # [G*B,N], or None where only its shape matters
    if importance is None:
        importance = teacher.cls.new_zeros(len(teacher.cls), math.prod(teacher.grid))
    return attention_mask(
        importance,
        strategy=values.strategy,
        eligible_fraction=values.eligible_fraction,
        mask_probability=values.mask_probability,
        generator=generator,
        grid=teacher.grid,
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
    distillation: Tensor,
    reconstruction: Tensor | None,
    part: tuple[CropSet, ...],
    share: float,
    values: ObjectiveValues,
) -> LossTerms:
    """Return a part's share of both losses and of their weighted sum.

    Args:
        distillation: its share of the mean over images and pairs.
        reconstruction: of its global crops [n*B, C, H, W], or None.
        part: what the student was given; the global crops, if any, come first.
        share: what one of its crops is of all global crops of the batch.
        values: the weights.
    """
    total = values.distillation_weight * distillation
    if reconstruction is None:
        return LossTerms(total, distillation, torch.zeros_like(distillation))
    crops = part[0].crops
    restoration = restoration_loss(reconstruction, crops.flatten(0, 1)) * (len(crops) * share)
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
    grid, mask = output.teacher.grid, output.mask
    if mask is None:
        mask = torch.zeros(len(images), math.prod(grid), dtype=torch.bool, device=images.device)
    hidden = pixel_mask(mask, grid, patch_size=images.shape[-2] // grid[0])  # [G*B,1,H,W]
    statistics["psnr_masked"] = psnr(output.reconstruction, images, hidden, std)
    statistics["psnr_visible"] = psnr(output.reconstruction, images, ~hidden, std)
    return statistics
