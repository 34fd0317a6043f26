"""How far a measured number may be off by the choice of validation images: standard errors, in percent points.

A metric `X` has its standard error as `X_se` in the same row. Accuracies: binomial. Balanced accuracy: from the
variances of the classes' recalls. AUROC: DeLong et al. 1988 ("Comparing the areas under two or more correlated receiver
operating characteristic curves"), carried over to the mean of one-against-rest curves. Means over images: their
deviation. Everything else (mean IoU): bootstrap over images (Efron 1979), each draw from (seed, purpose, number).
They say nothing of the choice of training images or of the seed: for that there is `--seeds`.
Letters: n images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mst.evaluate.common.metrics import SegmentationScores
from mst.runtime.noise import accuracy_se
from mst.runtime.seeding import generator

DRAWS = 1000
"""Bootstrap samples: the standard error itself is then known to about 2 %."""
ROUNDING = 1e-6
"""Percent points: a standard error below is one of rounding."""


def mean_se(values: Tensor) -> float:
    """Return the standard error of the mean of values [n], in their unit; nan for fewer than two."""
    return math.nan if len(values) < 2 else float(values.double().std(correction=1)) / math.sqrt(len(values))


def paired_se(first: Tensor, second: Tensor) -> float:
    """Return the standard error of the difference of two accuracies on the same images, in percent points.

    Much smaller than for different images, as most images are right or wrong in both (McNemar 1947).

    Args:
        first: which images one classifier gets right [n], bool.
        second: the same for the other [n], bool.
    """
    return 100 * mean_se(first.double() - second.double())


def recalls(confusion: Tensor) -> Tensor:
    """Return each class's share of right images [K] from counts [K, K], row = truth; nan for a class without images."""
    return confusion.diagonal().double() / confusion.sum(1)


def balanced_accuracy(confusion: Tensor) -> tuple[float, float]:
    """Return the mean recall of the classes that occur, and its standard error, in percent.

    The images of a class are independent of those of another: the variance of the mean is the sum of the recalls'
    binomial variances over the squared number of classes (a recall of 0 or 1 as in `accuracy_se`).

    Args:
        confusion: counts [K, K], row = truth.
    """
    found = [
        (100 * share, count)
        for share, count in zip(recalls(confusion).tolist(), confusion.sum(1).tolist(), strict=True)
        if count
    ]
    variance = sum(accuracy_se(share, int(count)) ** 2 for share, count in found)
    return sum(share for share, _ in found) / len(found), math.sqrt(variance) / len(found)


def auroc(scores: Tensor, labels: Tensor) -> tuple[float, float] | None:
    """Return the area under the ROC curve, one class against the rest, mean of the classes, and its standard error.

    In percent. Equal scores count half. Classes without images are left out of the mean; None where only one class
    occurs. Where classes are told apart without a single error, DeLong's variance is 0; then the standard error is that
    of an accuracy of 100 % on the images of the smallest class.

    Args:
        scores: [n, K], a higher one for a likelier class, comparable between images (probabilities).
        labels: true classes [n], int64.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    if len(classes) < 2:
        return None
    areas: list[float] = []
    terms = torch.zeros(len(labels), dtype=torch.float64)  # each image's part in the mean area
    for label in classes.tolist():
        own = (labels == label).cpu()
        column = scores[:, label].double().cpu()
        beaten = _share_below(column[own], column[~own])  # of the rest, by each image of the class
        above = 1 - _share_below(column[~own], column[own])  # of the class, that beat each image of the rest
        areas.append(float(beaten.mean()))
        terms[own] += beaten / (len(classes) * len(beaten))
        terms[~own] += above / (len(classes) * len(above))
    variance = 0.0
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        part = terms[(labels == label).cpu()]
        largest = 0.25 / len(classes) ** 2  # of a single image nothing is known but that it lies in 0..1
        variance += count * float(part.var(correction=1)) if count > 1 else largest
    se = 100 * math.sqrt(variance)
    return 100 * sum(areas) / len(areas), se if se > ROUNDING else accuracy_se(100.0, int(counts.min()))


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Return the share of `others` [m] that is below each of `values` [n], equal ones by half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(others))


def resamples(count: int, *, seed: int, purpose: str, draws: int = DRAWS) -> Iterator[Tensor]:
    """Yield how often each of `count` images is drawn with replacement [n], float64, for each bootstrap sample."""
    for number in range(draws):
        chosen = torch.randint(count, (count,), generator=generator(seed, "bootstrap", purpose, number))
        yield torch.bincount(chosen, minlength=count).double()


def segmentation_se(counts: Tensor, *, seed: int) -> dict[str, float]:
    """Return the standard errors of `miou`, `macc` and `aacc` in percent points, by bootstrap over images.

    Args:
        counts: of each image [n, 3, K], from `class_counts`.
        seed: of the evaluation.
    """
    counts = counts.double()
    rows = [
        SegmentationScores.from_counts(torch.einsum("n,nck->ck", weights, counts))
        for weights in resamples(len(counts), seed=seed, purpose="segmentation")
    ]
    found = {}
    for name in ("miou", "macc", "aacc") if len(counts) > 1 else ():
        values = torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        found[f"{name}_se"] = round(float(values[~values.isnan()].std(correction=1)), 6)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def bootstrap_se(
    statistic: Callable[[Tensor], float], count: int, *, seed: int, purpose: str, draws: int = DRAWS
) -> float:
    """Return the deviation of a statistic over bootstrap samples of `count` images; nan for fewer than two images.

    Args:
        statistic: takes how often each image is drawn [n], float64; samples where it is nan are left out.
        count: number of images n.
        seed: of the evaluation.
        purpose: what it is for: other purposes have other draws.
        draws: bootstrap samples.
    """
    if count < 2:
        return math.nan
    values = torch.tensor([statistic(weights) for weights in resamples(count, seed=seed, purpose=purpose, draws=draws)])
    values = values[~values.isnan()].double()
    return float(values.std(correction=1)) if len(values) > 1 else math.nan
