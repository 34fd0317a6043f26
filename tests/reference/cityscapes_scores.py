"""IoU of each label and their mean as cityscapesScripts' `evalPixelLevelSemanticLabeling` defines them, pixel by pixel.

A label's IoU is TP / (TP + FP + FN); false positives are counted on pixels whose true label is evaluated only; a label
without any of the three has no IoU, and the mean is over those that have one.
"""

from __future__ import annotations

from collections.abc import Sequence


def label_scores(truth: Sequence[int], prediction: Sequence[int], evaluated: Sequence[int]) -> dict[int, float]:
    """Return the IoU of every evaluated label that occurs, from two flat lists of label ids."""
    scores = {}
    for label in evaluated:
        hits = misses = wrong = 0
        for true, found in zip(truth, prediction, strict=True):
            if true == label and found == label:
                hits += 1
            elif true == label:
                misses += 1
            elif found == label and true in evaluated:
                wrong += 1
        if hits + misses + wrong:
            scores[label] = hits / (hits + misses + wrong)
    return scores


def mean_score(scores: dict[int, float]) -> float:
    """Return the mean over the labels that have a score."""
    return sum(scores.values()) / len(scores)
