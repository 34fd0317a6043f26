"""One attention layer of timm, opened so that what its patch keys receive can be read beside fused attention.

Covers timm's `Attention`, `AttentionRope` and `EvaAttention`; the arithmetic is theirs, the extra is one row per head.
Letters (docs/algorithm.md): B images, A heads, T = prefix + N tokens, N patch tokens, d = D / A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor

exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether torch.export is at work; torch 2.6 knows only whether that or torch.compile is."""
QUERY_CHUNK = 64  # queries whose attention over all keys is in memory at once, where there is no CLS token
EXPLICIT_TOKENS = 1024
"""Longest sequence whose attention is computed as plain matrix products on a CPU: there torch's fused kernel takes two
to seven times as long forward and backward (benchmarks/README.md), and above this the T x T matrices grow too large."""


def choose_kernel(blocks: Iterable[Any], x: Tensor) -> None:
    """Set timm's own switch in each block for the input x [B, T, D]: fused attention, or plain matrix products."""
    exported = exporting()  # to plain products, of any length
    fused = not exported and (x.device.type != "cpu" or x.shape[1] > EXPLICIT_TOKENS)
    for block in blocks:
        block.attn.fused_attn = fused


def attend(attention: Any, x: Tensor, rope: Tensor | None, *, prefix: int, has_cls: bool) -> tuple[Tensor, Tensor]:
    """Run one attention layer and read its importance.

    Args:
        attention: a timm attention module.
        x: its input [B, T, D].
        rope: rotary embedding of the patch tokens, or None.
        prefix: tokens before the patch tokens (CLS, registers).
        has_cls: whether token 0 is a CLS token.

    Returns:
        What `attention(x)` returns [B, T, D], and importance [B, N], float32, detached.
    """
    q, k, v = queries_keys_values(attention, x, rope)  # each [B, A, T, d]
    if has_cls:
        importance = cls_attention(q, k, attention.scale)[:, prefix:]  # [B, N]
    else:
        importance = received_attention(q[:, :, prefix:], k, attention.scale)[:, prefix:]  # [B, N]
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attention.scale)  # [B, A, T, d]
    else:
        out = attention.attn_drop((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v  # [B, A, T, d]
    out = attention.norm(out.transpose(1, 2).flatten(2))  # [B, T, A*d]
    if getattr(attention, "gate", None) is not None:
        out = out * attention.gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out)), importance


def queries_keys_values(attention: Any, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised and rotated queries, keys and the values [B, A, T, d] of x [B, T, D]."""
    if attention.qkv is None:
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (layer(x).reshape(*x.shape[:2], -1, attention.head_dim).transpose(1, 2) for layer in layers)
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:  # EVA: a bias for queries and values only
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        qkv = F.linear(x, attention.qkv.weight, bias)  # [B, T, 3*A*d]
        q, k, v = qkv.reshape(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [B, A, T, d]
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = (_rotate(attention, part, rope).type_as(v) for part in (q, k))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # grouped queries: each key-value head serves several query heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return q, k, v


def cls_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return how much token 0 attends to each key [B, T]: softmax over all keys in float32, mean over heads."""
    return _attention(q[:, :, :1].detach(), k.detach(), scale).mean(dim=1).squeeze(1)


def received_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return the attention each key receives [B, T], averaged over heads and queries, without a T x T matrix."""
    total = torch.zeros(k.shape[0], k.shape[2], device=k.device)  # [B, T]
    for rows in torch.split(q.detach(), QUERY_CHUNK, dim=2):
        total += _attention(rows, k.detach(), scale).mean(dim=1).sum(dim=1)
    return total / q.shape[2]


def _attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Softmax attention of queries [B, A, R, d] over keys [B, A, T, d] -> [B, A, R, T], float32 throughout."""
    with torch.autocast(q.device.type, enabled=False):
        return (q.float() * scale @ k.float().transpose(-2, -1)).softmax(dim=-1)


def _rotate(attention: Any, x: Tensor, rope: Tensor) -> Tensor:
    prefix = attention.num_prefix_tokens
    half = getattr(attention, "rotate_half", False)
    return torch.cat((x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)), dim=2)
