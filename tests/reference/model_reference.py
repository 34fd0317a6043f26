"""Slow, obvious definitions of what `mst.model` does fast."""

from __future__ import annotations

import copy

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def last_attention(model: VisionTransformer, x: Tensor) -> Tensor:
    """Full softmax attention [B, A, T, T] of the last block, from that block's input [B, T, D]."""
    attention = model.blocks[-1].attn
    h = model.blocks[-1].norm1(x)
    batch, count, _ = h.shape
    q, k, _ = attention.qkv(h).reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return (q @ k.transpose(-2, -1) * attention.head_dim**-0.5).softmax(-1)


def vit_cls_importance(model: VisionTransformer, images: Tensor) -> Tensor:
    """Last block's CLS attention over patch keys, averaged over heads, [B, N]: from a second, plain forward."""
    caught: list[Tensor] = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    model.forward_features(images)
    handle.remove()
    rows = []
    for attention in last_attention(model, caught[0]):  # [A, T, T] per image
        heads = [head[0, model.num_prefix_tokens :] for head in attention]
        rows.append(sum(heads) / len(heads))
    return torch.stack(rows)


def vit_received_importance(model: VisionTransformer, images: Tensor) -> Tensor:
    """Attention each patch receives from all patches in the last block, averaged over heads and queries, [B, N]."""
    caught: list[Tensor] = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    model.forward_features(images)
    handle.remove()
    prefix = model.num_prefix_tokens
    return last_attention(model, caught[0])[:, :, prefix:, prefix:].mean(dim=(1, 2))


def full_attention(model: nn.Module, attention: nn.Module, images: Tensor) -> Tensor:
    """What timm itself, with fused attention off, multiplies the values with in one layer of a plain forward."""
    caught: list[Tensor] = []
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    fused, attention.fused_attn = getattr(attention, "fused_attn", False), False
    model.forward_features(images)
    attention.fused_attn = fused
    handle.remove()
    return caught[0]


def vit_masked_features(model: VisionTransformer, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Final tokens [B, T, D] where, image by image, hidden patch embeddings are overwritten before the positions."""
    outputs = []
    for image, hidden in zip(images, mask, strict=True):
        x = model.patch_embed(image[None]).clone()  # [1, h, w, D]
        width = x.shape[2]
        for index, is_hidden in enumerate(hidden.tolist()):
            if is_hidden:
                x[0, index // width, index % width] = mask_token
        x = model.norm_pre(model._pos_embed(x))
        for block in model.blocks:
            x = block(x)
        outputs.append(model.norm(x))
    return torch.cat(outputs)


def weight_normed_linear(direction: Tensor, gain: Tensor) -> nn.Linear:
    """Torch's own weight-normalised linear layer with these parameters."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(direction.shape[1], direction.shape[0], bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(gain)
        layer.parametrizations.weight.original1.copy_(direction)
    return layer


def ema(teacher: nn.Module, student: nn.Module, momentum: float) -> nn.Module:
    """A new teacher: every parameter the weighted mean, every buffer the student's."""
    result = copy.deepcopy(teacher)
    mine, other = dict(result.named_parameters()), dict(student.named_parameters())
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(momentum * tensor + (1 - momentum) * other[name])
        for (_, target), (_, source) in zip(result.named_buffers(), student.named_buffers(), strict=True):
            target.copy_(source)
    return result
