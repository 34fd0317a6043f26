"""Weighted k-nearest-neighbour classification, one query at a time.

Source: Wu et al. 2018 (InstDisc, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"),
section 3.4; used unchanged by DINO (Caron et al. 2021), section 4.1 and appendix F.1.
"""

from __future__ import annotations

import math

import numpy as np


def knn_scores(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    *,
    num_neighbors: int,
    temperature: float,
    num_classes: int,
) -> np.ndarray:
    """Return class scores [n, num_classes], float64, not normalised over classes.

    Features [m, D] and [n, D] are compared by cosine similarity. Each of the `num_neighbors` most similar training
    samples (all of them where there are fewer; equal similarity: the lower index first) votes for its own label
    with weight exp(similarity / temperature). A class without a vote has -inf: it is no candidate.
    """
    scores = np.full((len(features), num_classes), -np.inf)
    for row, query in enumerate(features):
        similarities = [_cosine(query, other) for other in train_features]
        nearest = sorted(range(len(train_features)), key=lambda index: (-similarities[index], index))
        for index in nearest[:num_neighbors]:
            label = int(train_labels[index])
            before = 0.0 if scores[row, label] == -np.inf else scores[row, label]
            scores[row, label] = before + math.exp(similarities[index] / temperature)
    return scores


def knn_top(scores: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Return the percentage of rows whose label is among the `count` best classes that got a vote.

    Of equal scores the lower class number comes first.
    """
    hits = 0
    for row, label in zip(scores, labels, strict=True):
        voted = [number for number in range(len(row)) if row[number] != -np.inf]
        hits += int(label) in sorted(voted, key=lambda number: (-row[number], number))[:count]
    return 100.0 * hits / len(labels)


def knn_predictions(scores: np.ndarray) -> np.ndarray:
    """Return the class with the highest score for each row [n], the lowest class number among equals."""
    return np.array([int(np.argmax(row)) for row in scores], dtype=np.int64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norm_a = math.sqrt(sum(float(x) ** 2 for x in a))
    norm_b = math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / (max(norm_a, 1e-12) * max(norm_b, 1e-12))
