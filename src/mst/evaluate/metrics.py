"""Accuracy and segmentation scores from exact counts, in percent.

Letters: n samples, K classes. Segmentation scores follow mmsegmentation: a class that occurs neither in the
prediction nor in the truth has no IoU and is left out of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def rank_of_label(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes are placed before the true one [n], 0 = best; equal scores: lower class number first.

    A score that is not a number (a classifier that diverged) is placed last.

    Args:
        scores: class scores [n, K].
        labels: true classes [n], int64.
    """
    own = scores.gather(1, labels[:, None])  # [n,1]
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))  # [n,K]
    return torch.where(own.isnan().squeeze(1), scores.shape[1], before.sum(1))


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of samples whose true class is among the `k` best, nan for no samples."""
    return 100.0 * (rank_of_label(scores, labels) < k).double().mean().item()


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


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a confusion matrix, in percent; nan where a class has no value."""

    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]

    @staticmethod
    def from_confusion(confusion: Tensor) -> SegmentationScores:
        """Return the scores of counts [K, K] (row = truth, column = prediction)."""
        counts = confusion.double()
        hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)  # each [K]
        iou = 100 * hits / (truth + predicted - hits)  # 0/0 = nan: a class that is nowhere
        accuracy = 100 * hits / truth  # 0/0 = nan: a class that is not in the truth
        return SegmentationScores(
            miou=float(iou.nanmean()),
            macc=float(accuracy.nanmean()),
            aacc=float(100 * hits.sum() / truth.sum()),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
        )
