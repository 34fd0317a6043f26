"""What `mst.model.lean` and `mst.model.block` compute, in plain torch that keeps everything for the backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(
    qkv: Tensor, heads: int, scale: float, bias: Tensor | None = None, blocked: Tensor | None = None
) -> Tensor:
    """Softmax attention [B, T, D] of qkv [B, T, 3 * D], one image and one head at a time.

    To the scores are added bias [A, T, T] and, for every n-th image the same, blocked [n, 1, T, T].
    """
    width = qkv.shape[-1] // 3
    d = width // heads
    images = []
    for index, rows in enumerate(qkv):  # [T, 3 * D]
        outputs = []
        for head in range(heads):
            q, k, v = (rows[:, part * width + head * d : part * width + (head + 1) * d] for part in range(3))
            scores = scale * q @ k.t()  # [T, T]
            if bias is not None:
                scores = scores + bias[head]
            if blocked is not None:
                scores = scores + blocked[index % len(blocked), 0]
            outputs.append(scores.softmax(dim=-1) @ v)  # [T, d]
        images.append(torch.cat(outputs, dim=-1))
    return torch.stack(images)


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of a layer norm."""
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, correction=0)
    return F.linear((x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias, weight, bias)


def norm_gelu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GELU of a group normalisation of maps [B, C, h, w]."""
    return F.gelu(F.group_norm(x, groups, weight, bias, eps))


def add_branch(x: Tensor, branch_out: Tensor, keep: Tensor, drop_rate: float) -> Tensor:
    """Stochastic depth with every branch computed: x + branch_out * keep / (1 - drop_rate), keep [B] of 0 and 1."""
    return torch.stack([a + b * (k / (1 - drop_rate)) for a, b, k in zip(x, branch_out, keep, strict=True)])
