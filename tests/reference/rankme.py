"""RankMe: the effective rank of a feature matrix.

Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank", equation 1 (after Roy and Vetterli 2007).
"""

from __future__ import annotations

import math

import numpy as np


def rankme(features: np.ndarray, epsilon: float = 1e-7) -> float:
    """Return exp(entropy of the normalised singular values) of `features` [n, D]: between 1 and min(n, D).

    p_k = sigma_k / sum_j sigma_j + epsilon; rankme = exp(-sum_k p_k ln p_k). The features are not centred, as in the
    paper. `features` must not be all zero.
    """
    singular_values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    total = sum(float(sigma) for sigma in singular_values)
    entropy = 0.0
    for sigma in singular_values:
        p = float(sigma) / total + epsilon
        entropy -= p * math.log(p)
    return math.exp(entropy)
