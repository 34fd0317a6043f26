"""Accuracy of a trained classifier on labelled images. Letters: B images, K classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mst.evaluate.common.features import FeatureSettings, device_of, frozen, progress_bar, read_batches
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.metrics import accuracy, rank_of_label
from mst.runtime.device import select_precision


@dataclass(frozen=True)
class Scores:
    """What a classifier reaches.

    Attributes:
        top1: percent of the readable images whose class has the highest score.
        top5: percent whose class is among the five highest.
        unreadable: "name: reason" for each image left out.
    """

    top1: float
    top5: float
    unreadable: tuple[str, ...]


def score_classifier(
    classifier: nn.Module, images: ImageSet, transform: Callable[[Tensor], Tensor], settings: FeatureSettings
) -> Scores:
    """Score a classifier, which keeps its mode.

    Args:
        classifier: images [B, C, h, w] -> scores [B, K].
        images: with labels in 0..K-1.
        transform: uint8 image [C, H, W] -> float32 [C, h, w], the same size for every image.
        settings: batch size, threads and compute type.

    Raises:
        DataError: more than `max_unreadable_share` of the images, or all of them, cannot be read.
        RunFailure: a score is not finite.
    """
    device = device_of(classifier)
    compute, _ = select_precision(settings.precision, device)
    ranks: list[Tensor] = []
    unreadable: list[str] = []
    with frozen(classifier), progress_bar("validating", len(images), shown=settings.progress) as advance:
        for batch in read_batches(images, transform, settings):
            unreadable += batch.unreadable
            if batch.indices:
                with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                    scores = classifier(batch.images.to(device, non_blocking=True))  # [B, K]
                check_finite(scores, classifier, [images.name(index) for index in batch.indices], "class scores")
                ranks.append(rank_of_label(scores.float().cpu(), images.labels[batch.indices]))
            advance(len(batch.indices) + len(batch.unreadable))
    placed = torch.cat(ranks)
    return Scores(accuracy(placed, 1), accuracy(placed, 5), tuple(unreadable))
