"""Which patches of an image a backbone takes for an object: by attention, or by a cut between its patch tokens.

Sources: attention, the patches that hold 60 % of its mass (DINO: Caron et al. 2021, section 4.2.2 and appendix); the
cut, section 3 of Deep Spectral Methods (Melas-Kyriazi et al. 2022): the affinity of two patches is the cosine of their
features where it is positive, and the second smallest eigenvector of the graph's normalised Laplacian divides the
image by its sign, the smaller side being the object. Differs: the features are the patch tokens after the last norm,
which every family of backbones has, instead of the last block's keys, and no affinity of colours is added.
Letters: N = h*w patch tokens of width D.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from mst.errors import UsageError

MOST_PATCHES = 16_384
"""Most patches of an image that is cut: their affinities are a matrix of 1 GiB then."""
DENSE = 512
"""Up to this many patches all eigenvectors are computed; of more, the one that is wanted (Lanczos)."""
ALIKE = 1e-6
"""Patches whose cosines are all within this of 1 differ by rounding only: nothing divides them."""


class Choice(NamedTuple):
    """Patches that were chosen.

    Attributes:
        patches: bool [h, w], at least one.
        shown: float [h, w], not negative: how strongly each was, for pictures.
    """

    patches: NDArray[np.bool_]
    shown: Tensor


def by_mass(importance: Tensor, mass: float) -> Choice:
    """Return the fewest patches that hold at least `mass` of the importance [h, w]; of equal ones, the earlier."""
    flat = importance.flatten().double()
    order = torch.argsort(flat, descending=True, stable=True)
    total = flat[order].cumsum(0)  # [N]
    reached = total >= mass * total[-1] * (1 - 1e-12)
    count = int(reached.long().argmax()) + 1
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:count]] = True
    return Choice(chosen.reshape(importance.shape).numpy(), importance)


def by_cut(features: Tensor, grid: tuple[int, int]) -> Choice:
    """Return the smaller side of the cut through a graph of patches; all of them where they are alike.

    Args:
        features: of the patches [N, D].
        grid: (h, w).

    Raises:
        UsageError: too many patches.
    """
    if len(features) > MOST_PATCHES:
        raise UsageError(
            f"an image has {grid[0]} x {grid[1]} = {len(features)} patches: --method spectral compares each with each, "
            f"of at most {MOST_PATCHES}; name a smaller --size H W"
        )
    sides = _second_eigenvector(features)
    if sides is None:
        return Choice(np.ones(grid, dtype=np.bool_), torch.ones(grid))
    inside = sides > 0
    if 2 * inside.sum() > len(sides) or (2 * inside.sum() == len(sides) and inside[0]):
        sides, inside = -sides, sides < 0
    shown = torch.from_numpy(sides.clip(min=0)).float()
    return Choice(inside.reshape(grid), shown.reshape(grid))


def _second_eigenvector(features: Tensor) -> NDArray[np.floating] | None:
    """Return the eigenvector [N] whose signs are those of the normalised Laplacian's second smallest one.

    The Laplacian is 1 - S with S = D^-1/2 W D^-1/2 for affinities W and their sums D, so that its second smallest
    eigenvector is the second largest of S. The largest is D^1/2 with eigenvalue 1; it is moved out of the way, so that
    it is not mixed with the second in a graph of two parts without any affinity. None where W is constant.
    """
    unit = F.normalize(features.float(), dim=1)
    affinity = (unit @ unit.T).clamp_(min=0)  # [N, N]
    if float(affinity.min()) > 1 - ALIKE:
        return None
    scale = affinity.sum(1).clamp(min=ALIKE).rsqrt()  # [N]
    matrix = affinity.mul_(scale[:, None]).mul_(scale).numpy()  # S
    known = F.normalize(1 / scale, dim=0).numpy()  # [N]
    if len(matrix) <= DENSE:
        return _dense(matrix, known)
    # S + 1 has no negative eigenvalue, and -2 takes that of the known vector from 2 to 0.
    shifted = LinearOperator(matrix.shape, matvec=lambda x: matrix @ x + x - 2 * known * (known @ x), dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(len(matrix), dtype=np.float32)  # the same for every image
    try:
        return np.asarray(eigsh(shifted, k=1, which="LA", v0=start, tol=1e-5)[1][:, 0])
    except ArpackNoConvergence:
        return _dense(matrix, known)


def _dense(matrix: NDArray[np.floating], known: NDArray[np.floating]) -> NDArray[np.floating]:
    last = len(matrix) - 1
    shifted = matrix.astype(np.float64) + np.eye(len(matrix)) - 2 * np.outer(known, known)
    return np.asarray(eigh(shifted, subset_by_index=[last, last])[1][:, 0])
