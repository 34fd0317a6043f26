"""Slow, obvious definition of a Swin block where the map is no multiple of the window, with autograd's gradients."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted_window_attention(attention: Any, x: Tensor, shift: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Attend token by token.

    Args:
        attention: timm's `WindowAttention` of Swin or Swin V2.
        x: one map [h, w, D].
        shift: of the windows, (rows, columns).

    Returns:
        The output map [h, w, D], and per token the attention it receives from all tokens, averaged over heads and
        over the h * w queries [h * w].
    """
    height, width, dim = x.shape
    own = attention.window_size
    window = [min(side, length) for side, length in zip(own, (height, width), strict=True)]
    total = [-(-length // side) * side for length, side in zip((height, width), window, strict=True)]
    cells = list(product(range(height), range(width)))

    def place(cell: tuple[int, int], axis: int) -> tuple[int, int, bool]:
        """Window number, place inside it, and whether the shift wrapped this cell around."""
        moved = (cell[axis] - shift[axis]) % total[axis]
        return moved // window[axis], moved % window[axis], cell[axis] < shift[axis]

    allowed = torch.zeros(len(cells), len(cells), dtype=torch.bool)
    rows = torch.zeros(len(cells), len(cells), dtype=torch.int64)
    for (i, query), (j, key) in product(enumerate(cells), repeat=2):
        mine, other = ([place(cell, axis) for axis in (0, 1)] for cell in (query, key))
        if all(a[0] == b[0] and a[2] == b[2] for a, b in zip(mine, other, strict=True)):
            dy, dx = (a[1] - b[1] for a, b in zip(mine, other, strict=True))
            allowed[i, j] = True
            rows[i, j] = (dy + own[0] - 1) * (2 * own[1] - 1) + dx + own[1] - 1
    second = hasattr(attention, "logit_scale")
    qkv = attention.qkv(x)
    if getattr(attention, "q_bias", None) is not None:
        qkv = qkv + torch.cat((attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias))
    q, k, v = qkv.view(len(cells), 3, attention.num_heads, -1).permute(1, 2, 0, 3)  # each [A, N, d]
    if second:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)
        scores = scores * attention.logit_scale.exp().clamp(max=100.0)
        table = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table).view(-1, attention.num_heads))
    else:
        scores = q @ k.transpose(1, 2) * attention.scale
        table = attention.relative_position_bias_table
    scores = scores + table[rows].permute(2, 0, 1)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)  # [A, N, N]
    out = (weights @ v).transpose(0, 1).reshape(height, width, dim)
    return attention.proj(out), weights.mean(dim=(0, 1))


def swin_block(block: Any, x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return a block's output [B, h, w, D] for maps [B, h, w, D], map by map, nothing dropped; V2 where it is one."""
    outputs = []
    for image in x:
        if hasattr(block.attn, "logit_scale"):
            y = image + block.norm1(shifted_window_attention(block.attn, image, shift)[0])
            outputs.append(y + block.norm2(block.mlp(y)))
        else:
            y = image + shifted_window_attention(block.attn, block.norm1(image), shift)[0]
            outputs.append(y + block.mlp(block.norm2(y)))
    return torch.stack(outputs)
