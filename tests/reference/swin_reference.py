"""Slow, obvious definition of a Swin block's shifted-window attention where the map is no multiple of the window."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


@torch.no_grad()
def shifted_window_attention(attention: torch.nn.Module, x: Tensor, shift: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Attend token by token.

    Args:
        attention: timm's Swin `WindowAttention`.
        x: one map [h, w, D].
        shift: of the windows, (rows, columns).

    Returns:
        The output map [h, w, D], and per token the attention it receives from all tokens, averaged over heads and
        over the h * w queries [h * w].
    """
    height, width, dim = x.shape
    window = attention.window_size
    total = [-(-length // side) * side for length, side in zip((height, width), window, strict=True)]
    qkv = attention.qkv(x).reshape(height, width, 3, attention.num_heads, -1)  # [h, w, 3, A, d]
    cells = list(product(range(height), range(width)))

    def place(cell: tuple[int, int], axis: int) -> tuple[int, int, bool]:
        """Window number, place inside it, and whether the shift wrapped this cell around."""
        moved = (cell[axis] - shift[axis]) % total[axis]
        return moved // window[axis], moved % window[axis], cell[axis] < shift[axis]

    allowed = torch.zeros(len(cells), len(cells), dtype=torch.bool)
    bias = torch.zeros(attention.num_heads, len(cells), len(cells))
    for (i, query), (j, key) in product(enumerate(cells), repeat=2):
        mine, other = ([place(cell, axis) for axis in (0, 1)] for cell in (query, key))
        if all(a[0] == b[0] and a[2] == b[2] for a, b in zip(mine, other, strict=True)):
            dy, dx = (a[1] - b[1] for a, b in zip(mine, other, strict=True))
            allowed[i, j] = True
            row = (dy + window[0] - 1) * (2 * window[1] - 1) + dx + window[1] - 1
            bias[:, i, j] = attention.relative_position_bias_table[row]
    q, k, v = qkv.flatten(0, 1).permute(1, 2, 0, 3)  # each [A, N, d]
    scores = q @ k.transpose(1, 2) * attention.scale + bias
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)  # [A, N, N]
    out = (weights @ v).transpose(0, 1).reshape(height, width, dim)
    return attention.proj(out), weights.mean(dim=(0, 1))
