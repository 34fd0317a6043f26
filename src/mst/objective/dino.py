"""Self-distillation between views: the student predicts the teacher's distribution over K prototypes.

Source: DINO (Caron et al. 2021), section 3.1, equations 1-4 and algorithm 1. Differs in that everything is pure (the
loss does not update the center) and all pairs are summed at once. Float32 (or float64) whatever the compute type.

Letters: B images, G global crops, V = G + L student views (the first G are the global crops), K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.errors import UsageError


def teacher_probabilities(teacher_logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return softmax((teacher_logits - center) / temperature) over the prototypes.

    Args:
        teacher_logits: [G, B, K].
        center: running mean of the teacher's logits [1, K].
        temperature: below the student's, so that the target is sharper.

    Returns:
        probabilities [G, B, K].
    """
    return F.softmax((_full_precision(teacher_logits) - center) / temperature, dim=-1)  # [G,B,K]


def self_distillation_loss(student_logits: Tensor, teacher_probs: Tensor, student_temp: float) -> Tensor:
    """Return the mean cross-entropy over images and pairs (teacher view i, student view j != i).

    Sums over pairs are taken before the product: sum_ij p_i . q_j = (sum_i p_i) . (sum_j q_j), less the pairs i = j.

    Args:
        student_logits: [V, B, K], global crops first.
        teacher_probs: [G, B, K], G <= V.
        student_temp: temperature of the student's softmax.

    Returns:
        scalar, nats.

    Raises:
        UsageError: there is no pair of two different views.
    """
    globals_ = len(teacher_probs)
    pairs = count_pairs(globals_, len(student_logits))
    log_probs = F.log_softmax(_full_precision(student_logits) / student_temp, dim=-1)  # [V,B,K]
    all_pairs = (teacher_probs.sum(dim=0) * log_probs.sum(dim=0)).sum()
    same_view = (teacher_probs * log_probs[:globals_]).sum()
    return (same_view - all_pairs) / (pairs * student_logits.shape[1])


def count_pairs(globals_: int, views: int) -> int:
    """Return the number of pairs of a teacher view and another student view, of which the first are the teacher's.

    Raises:
        UsageError: there is none.
    """
    if views < 2 or globals_ < 1:
        raise UsageError(f"{globals_} teacher and {views} student views make no pair: use at least two global crops")
    return globals_ * (views - 1)


def view_targets(teacher_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each student view should predict, summed over the teacher's other views.

    As sum_ij p_i . log q_j = sum_j (sum_i p_i) . log q_j, a view needs one product whatever the number of pairs.

    Args:
        teacher_probs: [G, B, K].

    Returns:
        The targets of the global crops [G, B, K], each without its own, and that of every local crop [1, B, K].
    """
    together = teacher_probs.sum(dim=0, keepdim=True)  # [1,B,K]
    return together - teacher_probs, together


def updated_center(center: Tensor, teacher_logits: Tensor, momentum: float) -> Tensor:
    """Return momentum * center + (1 - momentum) * (mean of the teacher's logits over crops and images), [1, K].

    Args:
        center: [1, K].
        teacher_logits: [G, B, K].
        momentum: share of the old center that stays.
    """
    batch_mean = _full_precision(teacher_logits).mean(dim=(0, 1))[None]  # [1,K]
    return center * momentum + batch_mean * (1.0 - momentum)


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy of each distribution of `probs` [..., K], nats [...], from 0 to ln K.

    Of the teacher, its mean over images is zero where it has become one-hot for every input, and ln K where it has
    become uniform. The entropy of the mean over images falls towards it when all images get the same output (collapse).
    """
    terms: Tensor = torch.special.entr(probs)  # -p ln p, 0 at 0
    return terms.sum(dim=-1)


def _full_precision(tensor: Tensor) -> Tensor:
    """Return float32, or float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
