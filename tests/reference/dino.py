"""DINO's probabilities, loss, center and entropies, one image and one pair of views at a time.

Source: DINO (Caron et al. 2021), section 3.1: equation 1 (softmax with temperature), 3 (loss over pairs), 4 (center),
and section 5.3 "Avoiding collapse" (entropy of the target).
"""

from __future__ import annotations

import math

import numpy as np


def softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    """Return exp(row / temperature) over its sum, for one vector [K], in float64."""
    scaled = [float(value) / temperature for value in row]
    largest = max(scaled)
    exponentials = [math.exp(value - largest) for value in scaled]
    total = sum(exponentials)
    return np.array([value / total for value in exponentials])


def log_softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    """Return row / temperature - log(sum(exp(row / temperature))), for one vector [K], in float64."""
    scaled = [float(value) / temperature for value in row]
    largest = max(scaled)
    log_total = largest + math.log(sum(math.exp(value - largest) for value in scaled))
    return np.array([value - log_total for value in scaled])


def teacher_probabilities(teacher_logits: np.ndarray, center: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax((logits - center) / temperature) for logits [G, B, K] and center [1, K]."""
    probs = np.zeros(teacher_logits.shape)
    for crop in range(teacher_logits.shape[0]):
        for image in range(teacher_logits.shape[1]):
            probs[crop, image] = softmax(teacher_logits[crop, image] - center[0], temperature)
    return probs


def self_distillation_loss(student_logits: np.ndarray, teacher_probs: np.ndarray, student_temp: float) -> float:
    """Return the mean cross-entropy over images and pairs (teacher view i, student view j != i).

    `student_logits` [V, B, K], the first G views are the teacher's; `teacher_probs` [G, B, K].
    """
    total = 0.0
    terms = 0
    for i in range(teacher_probs.shape[0]):
        for j in range(student_logits.shape[0]):
            if i == j:
                continue
            for image in range(student_logits.shape[1]):
                log_probs = log_softmax(student_logits[j, image], student_temp)
                total -= sum(
                    float(p) * float(log_q) for p, log_q in zip(teacher_probs[i, image], log_probs, strict=True)
                )
                terms += 1
    return total / terms


def updated_center(center: np.ndarray, teacher_logits: np.ndarray, momentum: float) -> np.ndarray:
    """Return momentum * center + (1 - momentum) * mean over crops and images, [1, K]."""
    crops, images, prototypes = teacher_logits.shape
    result = np.zeros((1, prototypes))
    for k in range(prototypes):
        mean = sum(float(teacher_logits[g, b, k]) for g in range(crops) for b in range(images)) / (crops * images)
        result[0, k] = momentum * float(center[0, k]) + (1.0 - momentum) * mean
    return result


def entropy(row: np.ndarray) -> float:
    """Return -sum_k p_k ln p_k of one distribution [K], with 0 ln 0 = 0."""
    return -sum(float(p) * math.log(float(p)) for p in row if p > 0)


def mean_entropy(probs: np.ndarray) -> float:
    """Return the mean entropy of the distributions in [G, B, K]."""
    entropies = [entropy(row) for crop in probs for row in crop]
    return sum(entropies) / len(entropies)


def marginal_entropy(probs: np.ndarray) -> float:
    """Return the entropy of the mean distribution of [G, B, K]."""
    rows = [row for crop in probs for row in crop]
    return entropy(sum(rows) / len(rows))
