"""MST, one step from views to losses, in the paper's order.

Source: Li et al., "MST: Masked Self-Supervised Transformer for Visual Representation", NeurIPS 2021, section 3; letters
and formulas in docs/algorithm.md. With strategy `none` and restoration weight 0 the same lines are DINO.

Letters: B images, G global crops, L local crops, N = h*w patch tokens, K prototypes, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from mst.model.pair import StudentInput, StudentOutput, TeacherStudent
from mst.model.tokens import Summary
from mst.objective.dino import count_pairs, teacher_probabilities
from mst.objective.draws import StepDraws
from mst.objective.masking import ATTENTION_STRATEGIES, student_mask
from mst.objective.parts import shared, student_parts, whole, whole_summary, with_last
from mst.objective.prototypes import prototype_cross_entropy
from mst.objective.records import Backward, BatchCounts, CropSet, LossTerms, ObjectiveValues, StepOutput
from mst.objective.restoration import restoration_loss
from mst.parallel.replicas import Replicas
from mst.views.record import Views


def mst_losses(
    pair: TeacherStudent,
    views: Views,
    center: Tensor,
    values: ObjectiveValues,
    draws: StepDraws,
    *,
    backward: Backward | None = None,
    replicas: Replicas | None = None,
    keep: bool = False,
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
        keep: whether to keep the reconstruction.

    Raises:
        UsageError: a restoration weight without a decoder, or impossible masking values.
    """
    replicas, coupled = replicas or Replicas(pair), pair.student.head.couples_images
    crops, batch = views.global_crops.shape[:2]
    counts = BatchCounts(batch, crops, count_pairs(crops, crops + len(views.local_crops)))

    # The teacher sees the global crops whole, and says what matters in them.
    with torch.no_grad():
        seen = replicas.run(lambda pair, share: teacher_view(pair, shared(views, share), values), batch)
        teacher = whole_summary([summary for summary, _ in seen], crops)
        teacher_logits = torch.cat([logits for _, logits in seen], dim=1)  # [G,B,K]
        teacher_probs = teacher_probabilities(teacher_logits, center, values.teacher_temp)  # [G,B,K]

    # The student sees the global crops without the masked tokens, and the local crops whole. It predicts what the
    # teacher says of the other views, and the pixels of the global crops.
    mask = student_mask(teacher, values, draws)  # [G*B,N] or None

    def student_of(pair: TeacherStudent, share: slice) -> tuple[LossTerms, Tensor | None]:
        hidden = None if mask is None else mask.view(crops, batch, -1)[:, share].flatten(0, 1)
        parts = student_parts(shared(views, share), hidden, teacher_probs[:, share], together=coupled)
        student = partial(replicas.student, pair)
        return student_view(student, parts, values, draws.of(share), counts, backward=backward, keep=keep)

    predicted = replicas.run(student_of, batch)
    losses = reduce(LossTerms.plus, (terms for terms, _ in predicted))
    reconstruction = whole([pixels for _, pixels in predicted], crops)
    return StepOutput(losses, teacher_logits, teacher_probs, teacher, mask, reconstruction)


def teacher_view(pair: TeacherStudent, views: Views, values: ObjectiveValues) -> tuple[Summary, Tensor]:
    """Return the teacher's summary of the global crops, with importance if the mask needs it, and logits [G, B, K]."""
    images = views.global_crops.flatten(0, 1)  # [G*B,C,H,W]
    summary = pair.teacher.backbone.summary(images, importance=values.strategy in ATTENTION_STRATEGIES)
    logits: Tensor = pair.teacher.head(summary.cls).logits()
    return summary, logits.view(*views.global_crops.shape[:2], -1)


def student_view(
    student: Callable[..., StudentOutput],
    parts: Iterable[tuple[CropSet, ...]],
    values: ObjectiveValues,
    draws: StepDraws,
    counts: BatchCounts,
    *,
    backward: Backward | None,
    keep: bool,
) -> tuple[LossTerms, Tensor | None]:
    """Return a share's terms of the batch's losses; with `keep`, the reconstruction [G*b, C, H, W] or None."""
    found, reconstructions = list[LossTerms](), list[Tensor]()
    for part, last in with_last(parts):
        terms, reconstruction = part_losses(partial(student, last=last), part, values, draws, counts)
        if backward is not None:
            backward(terms.total)
            terms = terms.detach()
        found.append(terms)
        reconstructions += [reconstruction.detach()] if keep and reconstruction is not None else []
    return reduce(LossTerms.plus, found), torch.cat(reconstructions) if reconstructions else None


def part_losses(
    student: Callable[[Sequence[StudentInput]], StudentOutput],
    part: tuple[CropSet, ...],
    values: ObjectiveValues,
    draws: StepDraws,
    counts: BatchCounts,
) -> tuple[LossTerms, Tensor | None]:
    """Run the student on one part; return its terms of the batch's losses, and the reconstruction of its global crops.

    Self-distillation is the mean over images and pairs of views, restoration the mean over images and global crops.
    """
    restores = values.restoration_weight != 0
    inputs = [
        StudentInput(
            crops.crops.flatten(0, 1),  # [n*b,C,H,W]
            crops.mask,
            crops.whole and restores,
            partial(draws.from_crop(crops.first).uniform, "depth"),
        )
        for crops in part
    ]
    vectors, prototypes, reconstruction = student(inputs)  # each [n*b,d], [K,d], [n*b,C,H,W] or None
    terms = [
        prototype_cross_entropy(x.view(*crops.crops.shape[:2], -1), prototypes, crops.targets, values.student_temp)
        for x, crops in zip(vectors, part, strict=True)
    ]
    distillation = torch.stack(terms).sum() / (counts.pairs * counts.images)
    restoration = torch.zeros_like(distillation)
    if reconstruction is not None:
        n, b = part[0].crops.shape[:2]  # the global crops come first
        share = n * (b / counts.images / counts.global_crops)
        restoration = restoration_loss(reconstruction, inputs[0].images) * share
    total = values.distillation_weight * distillation + values.restoration_weight * restoration
    return LossTerms(total, distillation, restoration), reconstruction
