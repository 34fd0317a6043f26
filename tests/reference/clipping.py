"""Gradient clipping of each parameter tensor by its own norm.

Source: DINO (Caron et al. 2021), its published training code clips every parameter's gradient separately (limit 3.0),
unlike the usual clipping by the norm over all parameters.
"""

from __future__ import annotations

import math

import numpy as np


def clip_per_tensor(gradients: list[np.ndarray], max_norm: float) -> tuple[list[np.ndarray], list[float]]:
    """Return (clipped gradients, norms before clipping), in float64.

    A gradient whose Euclidean norm exceeds `max_norm` is scaled to have exactly that norm; others are unchanged.
    """
    clipped = []
    norms = []
    for gradient in gradients:
        norm = math.sqrt(sum(float(value) ** 2 for value in gradient.ravel()))
        scale = max_norm / norm if norm > max_norm else 1.0
        clipped.append(gradient.astype(np.float64) * scale)
        norms.append(norm)
    return clipped, norms
