"""Exponential moving averages, one number at a time.

Source: DINO (Caron et al. 2021), section 3.1 "Teacher network" (teacher) and equation 4 (center).
"""

from __future__ import annotations

import numpy as np


def ema(old: np.ndarray, new: np.ndarray, momentum: float) -> np.ndarray:
    """Return momentum * old + (1 - momentum) * new, element by element, in float64; same shape as `old`."""
    result = np.zeros(old.shape, dtype=np.float64)
    for index in np.ndindex(old.shape):
        result[index] = momentum * float(old[index]) + (1.0 - momentum) * float(new[index])
    return result


def ema_history(values: list[float], start: float, momentum: float) -> list[float]:
    """Return the average after each of `values`, beginning from `start` (not included)."""
    history = []
    average = start
    for value in values:
        average = momentum * average + (1.0 - momentum) * value
        history.append(average)
    return history
