"""Accuracy and segmentation scores from exact counts, in percent.

Letters: n samples, K classes. Segmentation scores follow mmsegmentation: a class that occurs neither in the
prediction nor in the truth has no IoU and is left out of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ABSENT = 1 << 62
"""Rank of a class that no neighbour voted for: beyond any number of classes."""


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes rank before the true one [n], 0 = best. Of equal scores the lower class number is first.

    NaN (a classifier that diverged) ranks last. A true class with the score -inf, for which no neighbour voted, was not
    found at all: its rank is `ABSENT`.

    Args:
        scores: class scores [n, K].
        labels: true classes [n], int64.
    """
    own = scores.gather(1, labels[:, None])  # [n,1]
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))  # [n,K]
    rank = torch.where(own.isnan().squeeze(1), scores.shape[1], before.sum(1))
    return rank.masked_fill((own == -torch.inf).squeeze(1), ABSENT)


def accuracy(ranks: Tensor, k: int) -> float:
    """Return the percentage of samples whose true class is among the `k` best; ranks [n] from `rank_of_label`."""
    return percent((ranks < k).double().mean().item())


def percent(share: float) -> float:
    """Return a share as a percentage with six decimals, which hides the rounding of binary fractions."""
    return round(100.0 * share, 6)


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int | None) -> Tensor:
    """Return counts [K, K], int64: row = truth, column = prediction; pixels of `ignore_index` are not counted.

    Args:
        prediction: classes in 0..K-1, any shape.
        target: classes of the same shape; `ignore_index` may lie outside 0..K-1.
        num_classes: K.
        ignore_index: the class number of pixels without a label, or None.
    """
    prediction, target = prediction.flatten().long(), target.flatten().long()
    if ignore_index is not None:
        kept = target != ignore_index
        prediction, target = prediction[kept], target[kept]
    return torch.bincount(target * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_counts(confusion: Tensor) -> Tensor:
    """Return hits, pixels of the class and pixels predicted as it [3, K], of counts [K, K] (row = truth)."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a confusion matrix, in percent; nan for a class that has none."""

    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]

    @staticmethod
    def from_confusion(confusion: Tensor) -> SegmentationScores:
        """Return the scores of counts [K, K] (row = truth, column = prediction)."""
        return SegmentationScores.from_counts(class_counts(confusion))

    @staticmethod
    def from_counts(counts: Tensor) -> SegmentationScores:
        """Return the scores of `class_counts` [3, K], of one image or summed over images."""
        hits, truth, predicted = counts.double()
        iou = hits / (truth + predicted - hits)  # 0/0 = nan: a class that is nowhere
        recall = hits / truth  # 0/0 = nan: a class that is not in the truth
        return SegmentationScores(
            miou=percent(float(iou.nanmean())),
            macc=percent(float(recall.nanmean())),
            aacc=percent(float(hits.sum() / truth.sum())),
            iou=tuple(map(percent, iou.tolist())),
            accuracy=tuple(map(percent, recall.tolist())),
        )
