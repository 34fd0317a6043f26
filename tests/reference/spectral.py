"""The spectral cut of an image, slowly: the generalised eigenproblem of the graph's Laplacian, as the paper has it.

Source: Melas-Kyriazi et al. 2022 (Deep Spectral Methods), section 3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def laplacian(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return D - W [N, N] and the diagonal of D [N], of features [N, D]."""
    n = len(features)
    affinity = np.array([[max(0.0, cosine(features[i], features[j])) for j in range(n)] for i in range(n)])
    degree = affinity.sum(1)
    return np.diag(degree) - affinity, degree


def eigenvalues_and_vectors(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the solutions of (D - W) y = lambda D y, by rising lambda: [N] and, in columns, [N, N]."""
    matrix, degree = laplacian(features)
    values, vectors = np.linalg.eig(np.diag(1 / degree) @ matrix)
    order = np.argsort(values.real)
    return values.real[order], vectors.real[:, order]


def smaller_side(features: NDArray[np.float64]) -> set[int]:
    """Return the patches on the smaller side of the cut; of equal ones, that without the first patch."""
    vector = eigenvalues_and_vectors(features)[1][:, 1]
    positive = {i for i, y in enumerate(vector) if y > 0}
    others = set(range(len(vector))) - positive
    return min(positive, others, key=lambda side: (len(side), 0 in side))
