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
from torch import Tensor

from mst.errors import UsageError

MOST_PATCHES = 16_384
"""Most patches of an image that is cut: their affinities are a matrix of 1 GiB then."""
DENSE = 512
"""Up to this many patches all eigenvectors are computed; of more, the one that is wanted (LOBPCG)."""
TOLERANCE, MOST_STEPS = 1e-5, 200
"""Of LOBPCG: the residual beside the matrix's norm at which it ends, and its most steps."""
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


def check_count(grid: tuple[int, int], name: str = "an image") -> None:
    """Refuse a grid (h, w) of more patches than can be compared.

    Raises:
        UsageError: with the `name` of the image.
    """
    if grid[0] * grid[1] > MOST_PATCHES:
        raise UsageError(
            f"{name} has {grid[0]} x {grid[1]} = {grid[0] * grid[1]} patches: --method spectral compares each with "
            f"each, of at most {MOST_PATCHES}; name a smaller --size H W"
        )


def by_cut(features: Tensor, grid: tuple[int, int]) -> Choice:
    """Return the smaller side of the cut through a graph of patches; all of them where they are alike.

    Args:
        features: of the patches [N, D].
        grid: (h, w).

    Raises:
        UsageError: too many patches.
    """
    check_count(grid)
    vector = _second_eigenvector(features)
    sides = np.zeros(len(features)) if vector is None else vector.numpy()
    inside = sides > 0
    if inside.all() or not inside.any():
        return Choice(np.ones(grid, dtype=np.bool_), torch.ones(grid))
    if 2 * inside.sum() > len(sides) or (2 * inside.sum() == len(sides) and inside[0]):
        sides, inside = -sides, sides < 0
    shown = torch.from_numpy(sides.clip(min=0)).float()
    return Choice(inside.reshape(grid), shown.reshape(grid))


def _second_eigenvector(features: Tensor) -> Tensor | None:
    """Return the eigenvector [N] whose signs are those of the normalised Laplacian's second smallest one.

    The Laplacian is 1 - S with S = D^-1/2 W D^-1/2 for affinities W and their sums D, so that its second smallest
    eigenvector is the second largest of S. The largest is D^1/2 with eigenvalue 1; its eigenvalue is set to 0, so that
    it is not mixed with the second in a graph of two parts without any affinity. The largest of the others is not
    below 0: their sum, the trace of S less 1, is the sum of 1/D less 1, and no D is above N. None where W is constant.
    """
    features = features.float()
    unit = F.normalize(features / features.abs().max().clamp(min=torch.finfo(torch.float32).tiny), dim=1)
    affinity = (unit @ unit.T).clamp_(min=0)  # [N, N]
    if float(affinity.min()) > 1 - ALIKE or not affinity.any():
        return None
    scale = affinity.sum(1).clamp(min=ALIKE).rsqrt()  # [N]
    known = F.normalize(1 / scale, dim=0)  # [N]
    matrix = affinity.mul_(scale[:, None]).mul_(scale)  # S
    matrix.addr_(known, known, alpha=-1)
    if len(matrix) <= DENSE:
        vectors: Tensor = torch.linalg.eigh(matrix.double()).eigenvectors
        return vectors[:, -1]
    start = torch.randn(len(matrix), 1, generator=torch.Generator().manual_seed(0))  # the same for every image
    vectors = torch.lobpcg(matrix, X=start, largest=True, tol=TOLERANCE, niter=MOST_STEPS)[1]
    return vectors[:, 0]
