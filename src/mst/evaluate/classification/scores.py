"""Accuracy of a trained classifier on labelled images. Letters: B images, K classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mst.evaluate.classification.outcome import Outcome, accuracies
from mst.evaluate.common.features import FeatureSettings, Readable, device_of, frozen, progress_bar, read_batches
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.common.metrics import rank_of_label
from mst.runtime.device import select_precision


@dataclass(frozen=True)
class Scores:
    """What a classifier reaches.

    Attributes:
        outcome: its answers for the readable images.
        loss: mean cross-entropy, without smoothing.
        unreadable: "name: reason" for each image left out.
    """

    outcome: Outcome
    loss: float
    unreadable: tuple[str, ...]

    def row(self, part: str) -> dict[str, float]:
        """Return `{part}_top1`, `{part}_top5` (more than ten classes) and `{part}_loss` for a row of metrics."""
        found = accuracies(self.outcome.ranks, len(self.outcome.classes))
        return {f"{part}_{name}": value for name, value in found.items()} | {f"{part}_loss": self.loss}


def score_classifier(
    classifier: nn.Module,
    images: ImageSet,
    transform: Callable[[Tensor], Tensor],
    settings: FeatureSettings,
    classes: Sequence[str],
) -> Scores:
    """Score a classifier, which keeps its mode.

    Args:
        classifier: images [B, C, h, w] -> scores [B, K].
        images: with labels in 0..K-1.
        transform: uint8 image [C, H, W] -> float32 [C, h, w], the same size for every image.
        settings: batch size, threads and compute type.
        classes: names of the K classes.

    Raises:
        DataError: more than `max_unreadable_share` of the images, or all of them, cannot be read.
        RunFailure: a score is not finite.
    """
    shares, kept, unreadable = class_probabilities(classifier, images, transform, settings, title="validating")
    labels = images.labels[kept]
    loss = -float(shares.gather(1, labels[:, None]).clamp_min(torch.finfo(shares.dtype).tiny).log().mean())
    names = [images.name(index) for index in kept]
    outcome = Outcome(shares, labels, rank_of_label(shares, labels), names, kept, classes)
    return Scores(outcome, loss, tuple(unreadable))


def class_probabilities(
    classifier: nn.Module,
    images: Readable,
    transform: Callable[[Tensor], Tensor],
    settings: FeatureSettings,
    *,
    title: str,
) -> tuple[Tensor, list[int], list[str]]:
    """Return the class probabilities [n, K] of the readable images, float64 on the CPU.

    Args:
        classifier: images [B, C, h, w] -> scores [B, K].
        images: to classify.
        transform: uint8 image [C, H, W] -> float32 [C, h, w], the same size for every image.
        settings: batch size, threads and compute type.
        title: words beside the progress bar.

    Returns:
        Probabilities, positions of the readable images in the set [n], and "name: reason" for each of the others.

    Raises:
        DataError: more than `max_unreadable_share` of the images, or all of them, cannot be read.
        RunFailure: a score is not finite.
    """
    device = device_of(classifier)
    compute, _ = select_precision(settings.precision, device)
    shares: list[Tensor] = []
    kept: list[int] = []
    unreadable: list[str] = []
    with frozen(classifier), progress_bar(title, len(images), shown=settings.progress) as advance:
        for batch in read_batches(images, transform, settings):
            unreadable += batch.unreadable
            if batch.indices:
                with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                    scores = classifier(batch.images.to(device, non_blocking=True))  # [B, K]
                check_finite(scores, classifier, [images.name(index) for index in batch.indices], "class scores")
                shares.append(scores.float().cpu().double().softmax(1))
                kept += batch.indices
            advance(len(batch.indices) + len(batch.unreadable))
    return torch.cat(shares), kept, unreadable
