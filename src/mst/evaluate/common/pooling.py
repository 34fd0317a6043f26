"""What of a backbone's tokens stands for an image: the CLS token, or what its patch tokens have in common or not.

CLS and mean side by side are DINOv2's features for a linear probe (Oquab et al. 2023, appendix B). Deviation, maximum
and minimum over the patches are for what is small in an image: a crack changes one patch of a cell, hardly their mean.

Letters: B images, N patch tokens, D embedding size, p parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from mst.errors import UsageError
from mst.model.tokens import Tokens

Part = Literal["cls", "mean", "std", "max", "min"]
"""The global feature; mean, standard deviation, maximum and minimum of each number over the patch tokens."""
Pool = tuple[Part, ...]
"""Parts side by side."""

_PARTS: Mapping[Part, Callable[[Tokens], Tensor]] = {
    "cls": lambda tokens: tokens.cls,
    "mean": lambda tokens: tokens.patches.mean(1),
    "std": lambda tokens: tokens.patches.std(1, correction=0),
    "max": lambda tokens: tokens.patches.amax(1),
    "min": lambda tokens: tokens.patches.amin(1),
}


def check_pool(pool: Pool) -> None:
    """Refuse no part, or one that is named twice.

    Raises:
        UsageError: so it is.
    """
    if not pool or len(set(pool)) < len(pool):
        raise UsageError(f"--pool {' '.join(pool)}: name at least one of {' '.join(_PARTS)}, and each once")


def pooled(tokens: Tokens, pool: Pool) -> Tensor:
    """Return the parts side by side [B, p D]."""
    return torch.cat([_PARTS[part](tokens) for part in pool], dim=1)


def blocks_in(features: Tensor, pool: Pool, dim: int) -> int:
    """Return the number b of blocks whose p parts of D numbers are the features [n, b p D]."""
    return features.shape[1] // (len(pool) * dim)


def part_scales(features: Tensor, pool: Pool, dim: int) -> Tensor:
    """Return for each number the root mean square deviation of the part that it is of [b p D].

    Parts differ in size: one scale for all would leave the smallest ones nearly unread by a penalised classifier.

    Args:
        features: of n images, b blocks side by side [n, b p D].
        pool: the p parts.
        dim: D.
    """
    squares = features.std(0, correction=0).square().view(-1, len(pool), dim)  # [b, p, D]
    scales = squares.mean((0, 2), keepdim=True).sqrt().expand_as(squares)
    return scales.reshape(-1)
