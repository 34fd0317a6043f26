"""Fixed position embeddings: sines and cosines of a patch's row and column, which no training changes.

Source: Vaswani et al. 2017, in two dimensions as MoCo v3 (Chen et al. 2021) and MAE (He et al. 2022) take them; timm
orders the dimensions otherwise (sines of row and column, then cosines), which is a permutation of the network's width.

Letters (docs/algorithm.md): N = h*w patch tokens, D embedding size, P prefix tokens that have a position.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor

from mst.errors import UsageError


def sines_and_cosines(grid: tuple[int, int], width: int, *, prefix: int = 0) -> Tensor:
    """Return the embeddings [1, P + h*w, D], float32: zero for the `prefix` tokens, patches in row-major order.

    Args:
        grid: (h, w).
        width: D, a multiple of 4.
        prefix: P.
    """
    patches: Tensor = build_sincos2d_pos_embed(list(grid), dim=width)  # [N, D]
    return torch.cat([patches.new_zeros(prefix, width), patches])[None]


def fix_positions(model: Any) -> None:
    """Give a timm network that has position embeddings such ones, in place, and let no training change them.

    They stay a parameter under timm's name, so that weights load as those of any other network.

    Raises:
        UsageError: its width is no multiple of 4.
    """
    parameter: Tensor = model.pos_embed  # [1, P + N, D]
    tokens, width = parameter.shape[1:]
    if width % 4:
        raise UsageError(
            f"--model.positions fixed: the network is {width} wide, which is no multiple of 4: change --model.embed-dim"
        )
    height, wide = model.patch_embed.grid_size
    with torch.no_grad():
        parameter.copy_(sines_and_cosines((height, wide), width, prefix=tokens - height * wide))
    parameter.requires_grad_(False)
