"""What a classifier reaches without a trained network: majority class, colour statistics, pixels; and k-NN itself.

Each gives which validation images it gets right (`Answers`), so that differences can be judged image by image.
Statistics and pixels are classified by logistic regression (`mst.evaluate.classification.logistic`), each number
standardised on the training images; the penalty is chosen on a held-out tenth of them.

Letters: n images, D numbers, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mst.evaluate.classification.descriptors import colour_statistics, small_pixels
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.knn import knn_answers as classify
from mst.evaluate.classification.linear_probe import held_out_mask
from mst.evaluate.classification.logistic import LogisticProtocol, Solution, best_penalty, solve, solve_path
from mst.evaluate.common.features import Features, FeatureSettings, device_of, extract_features
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.metrics import accuracy
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone
from mst.runtime.answers import Answers

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Of the logistic regression: few, as it must cost little beside a training."""
MOST_ITERATIONS, FEWEST_ITERATIONS = 100, 15
WORK = 4e11
"""Multiplications that all solutions together may take; with many images and classes there are fewer iterations."""


@dataclass(frozen=True)
class Baseline:
    """One thing to compare with.

    Attributes:
        which: `majority`, `colour` or `pixels`.
        answers: which validation images it gets right.
        numbers: D, what it knows of an image.
        penalty: of its logistic regression; None = it has none.
    """

    which: str
    answers: Answers
    numbers: int
    penalty: float | None = None


@dataclass(frozen=True)
class _Describe:
    """From an image to its numbers: the crop that a backbone would see, described."""

    transform: ImageTransform
    describe: Callable[[Tensor], Tensor]

    def __call__(self, image: Tensor) -> Tensor:
        return self.describe(self.transform.crop(image))


def both(crop: Tensor) -> Tensor:
    """Return colour statistics and small pixels of a uint8 image [C, H, W], one behind the other: float32 [D]."""
    return torch.cat([colour_statistics(crop), small_pixels(crop)])


def simple_baselines(
    data: LabelledSets, transform: ImageTransform, *, settings: FeatureSettings, seed: int
) -> list[Baseline]:
    """Return majority class, colour statistics and pixels; each image is read once.

    Args:
        data: labelled images.
        transform: of the backbone that is compared: its size and cut.
        settings: threads, and the share that may be unreadable.
        seed: of the held-out part of the training images.

    Raises:
        DataError: one class only, or too many images cannot be read.
    """
    data.check_classes()
    train, val = (
        extract_features(
            nn.Identity(),  # type: ignore[arg-type]
            images,
            _Describe(transform, both),
            lambda _, numbers: numbers,
            replace(settings, precision="fp32"),
            title=f"colours and pixels of {title} images",
            tell=False,
        )
        for title, images in (("training", data.train), ("validation", data.val))
    )
    split = len(colour_statistics(torch.zeros(data.train.channels, 2, 2, dtype=torch.uint8)))
    classes = len(data.classes)
    most = int(torch.bincount(train.labels, minlength=classes).argmax())
    found = [Baseline("majority", Answers.of((val.labels == most).tolist(), val.names), 0)]
    for which, part in (("colour", slice(0, split)), ("pixels", slice(split, None))):
        own, other = (replace(each, features=each.features[:, part]) for each in (train, val))
        found.append(classified(which, own, other, num_classes=classes, seed=seed))
    return found


def classified(which: str, train: Features, val: Features, *, num_classes: int, seed: int) -> Baseline:
    """Return what logistic regression on numbers of the training images [n, D] makes of the validation images."""
    mean, std = train.features.mean(0), train.features.std(0, correction=0)
    scale = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.inf)  # a constant number says nothing
    x, queries = ((each.features - mean) / scale for each in (train, val))
    size = x.shape[0] * x.shape[1] * num_classes
    iterations = int(min(max(WORK / (8 * size * (len(PENALTIES) + 1)), FEWEST_ITERATIONS), MOST_ITERATIONS))
    protocol = LogisticProtocol(penalties=PENALTIES, iterations=iterations, tolerance=1e-4)
    out = held_out_mask(train.labels, protocol.held_out_share, seed=seed)
    penalty, start = 1e-2, None
    if bool(out.any()):
        path = solve_path(x[~out], train.labels[~out], protocol, num_classes=num_classes, progress=False)
        penalty = best_penalty({each: _top1(found, x[out], train.labels[out]) for each, found in path.items()})
        start = path[penalty]
    final = solve(x, train.labels, penalty, protocol, num_classes=num_classes, start=start)
    right = final.ranks(queries, val.labels) == 0
    return Baseline(which, Answers.of(right.tolist(), val.names), x.shape[1], penalty)


def _top1(found: Solution, x: Tensor, labels: Tensor) -> float:
    return accuracy(found.ranks(x, labels), 1)


def knn_answers(
    backbone: Backbone, data: LabelledSets, transform: ImageTransform, *, neighbors: int, settings: FeatureSettings
) -> Answers:
    """Return which validation images k-NN gets right with a backbone's features, as `mst evaluate knn` would.

    Args:
        backbone: any; its mode is restored.
        data: labelled images.
        transform: from an image to the backbone's input.
        neighbors: k; all training images where there are fewer.
        settings: batch size, threads, compute type.
    """
    train, val = (
        extract_features(backbone, images, transform, settings=settings, title=f"{title} features")
        for title, images in (("training", data.train), ("validation", data.val))
    )
    found = classify(
        train,
        val,
        neighbors=[neighbors],
        headline=neighbors,
        temperature=KnnProtocol().temperature,
        num_classes=len(data.classes),
        device=device_of(backbone),
    )
    return Answers.of((found.ranks[neighbors] == 0).tolist(), val.names)
