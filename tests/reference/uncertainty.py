"""Standard errors written out: counting pairs, one image and one draw at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def binomial_se(right: Sequence[bool]) -> float:
    """Return the deviation of the mean of independent yes/no draws, in percent points."""
    share = sum(right) / len(right)
    return 100 * math.sqrt(share * (1 - share) / len(right))


def balanced_accuracy(predictions: Sequence[int], labels: Sequence[int]) -> tuple[float, float]:
    """Return the mean recall of the classes that occur, in percent, and its standard error."""
    shares, variance = [], 0.0
    for label in sorted(set(labels)):
        right = [guess == label for guess, true in zip(predictions, labels, strict=True) if true == label]
        shares.append(sum(right) / len(right))
        share = shares[-1] if 0 < shares[-1] < 1 else (sum(right) + 1) / (len(right) + 2)
        variance += share * (1 - share) / len(right)
    return 100 * sum(shares) / len(shares), 100 * math.sqrt(variance) / len(shares)


def wins(one: float, other: float) -> float:
    """Return 1 where `one` is larger, 1/2 where both are equal."""
    return 1.0 if one > other else 0.5 if one == other else 0.0


def auroc(scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """Return the mean over classes of the share of pairs (image of the class, other image) in the right order."""
    areas = []
    for label in sorted(set(labels)):
        own = [row[label] for row, true in zip(scores, labels, strict=True) if true == label]
        rest = [row[label] for row, true in zip(scores, labels, strict=True) if true != label]
        areas.append(sum(wins(one, other) for one in own for other in rest) / (len(own) * len(rest)))
    return 100 * sum(areas) / len(areas)


def delong_se(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the standard error of the area of two classes by DeLong's structural components, in percent points.

    `scores` are those of class 1.
    """
    own = [score for score, label in zip(scores, labels, strict=True) if label == 1]
    rest = [score for score, label in zip(scores, labels, strict=True) if label == 0]
    by_own = [sum(wins(one, other) for other in rest) / len(rest) for one in own]
    by_rest = [sum(wins(one, other) for one in own) / len(own) for other in rest]
    return 100 * math.sqrt(_variance(by_own) / len(own) + _variance(by_rest) / len(rest))


def paired_se(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the standard error of the difference of two accuracies on the same images, in percent points."""
    return 100 * math.sqrt(_variance([float(a) - float(b) for a, b in zip(first, second, strict=True)]) / len(first))


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)
