"""Other projects' names of the tensors of a ViT, a DINOv2 or DINOv3, and a Swin, turned into timm's.

Sources: the state dictionaries of DINOv2 and DINOv3 (Meta), Swin (Microsoft), Hugging Face transformers (ViT, ViTMAE,
DeiT, Dinov2, DINOv3, Swin, Swinv2) and MMPretrain. Each function returns a new dictionary; names it does not know stay
as they are, so that they are reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Any]
DERIVED = re.compile(r".*(relative_position_index|relative_coords_table|attn_mask|rope.*\.periods|bias_mask|inv_freq)")
"""Buffers that a network computes for itself."""

HUGGING_FACE = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"(?:encoder\.|model\.)?layers?\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"encoder\.layers\.(\d+)\.downsample\.", r"layers.\1.downsample."),
    (r"(?:encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (
        r"^(?:encoder\.|model\.)?layers\.(\d+)\.(?=attention\.|mlp\.|layernorm|intermediate|output|layer_scale)",
        r"blocks.\1.",
    ),
    (r"\.relative_position_bias\.relative_position_bias_table", ".relative_position_bias_table"),
    (r"\.attention\.(?:attention|self)\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.attn\.(query|q_proj)\.", ".attn.q_part."),
    (r"\.attn\.(key|k_proj)\.", ".attn.k_part."),
    (r"\.attn\.(value|v_proj)\.", ".attn.v_part."),
    (r"\.attn\.o_proj\.", ".attn.proj."),
    (r"\.continuous_position_bias_mlp\.", ".cpb_mlp."),
    (r"\.intermediate\.dense\.|\.mlp\.up_proj\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.down_proj\.|\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
MMPRETRAIN = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.", "layers."),
    (r"^layers\.(\d+)\.(?!blocks\.|downsample\.)", r"blocks.\1."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"^ln1\.|^norm3\.", "norm."),
    (r"^ln_pre\.|^pre_norm\.", "norm_pre."),
)


def as_timm(tensors: Tensors) -> dict[str, Any]:
    """Return the names of timm, MoCo and DINO as they are, and those of DINOv2 without the chunks of its blocks."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in _needed(tensors).items()}


def from_hugging_face(tensors: Tensors) -> dict[str, Any]:
    """Return the names of transformers as timm's: query, key and value become one layer."""
    return _later_merging(_joined(_renamed(_needed(tensors), HUGGING_FACE)))


def from_mmpretrain(tensors: Tensors) -> dict[str, Any]:
    """Return the names of MMPretrain as timm's; its patch merging orders the four patches in another way."""
    renamed = _later_merging(_renamed(_needed(tensors), MMPRETRAIN))
    return {
        name: _reordered(value) if re.search(r"downsample\.(norm|reduction)\.", name) else value
        for name, value in renamed.items()
    }


def from_microsoft(tensors: Tensors) -> dict[str, Any]:
    """Return Swin's own names as timm's, which merges patches at the start of a stage, not at the end."""
    return _later_merging(_needed(tensors))


def with_registers(tensors: Tensors) -> dict[str, Any]:
    """Return DINOv2's registers as timm has them: their position, and the CLS token's, is part of the tokens."""
    plain = as_timm(tensors) if "register_tokens" in tensors else from_hugging_face(tensors)
    cls, positions = plain.get("cls_token"), plain.get("pos_embed")
    if "register_tokens" in plain:
        plain["reg_token"] = plain.pop("register_tokens")
        if isinstance(cls, Tensor) and isinstance(positions, Tensor) and positions.ndim == cls.ndim == 3:
            plain["cls_token"], plain["pos_embed"] = cls + positions[:, :1], positions[:, 1:]
    return plain


def with_rotation(tensors: Tensors) -> dict[str, Any]:
    """Return DINOv3's names as those of timm's Eva."""
    plain = as_timm(tensors) if "storage_tokens" in tensors else from_hugging_face(tensors)
    changes = ((r"storage_tokens|register_tokens", "reg_token"), (r"\.ls(\d)\.gamma", r".gamma_\1"))
    found = _renamed(plain, changes)
    for name in [name for name in found if name.endswith(".attn.qkv.bias")]:
        bias = found.pop(name)  # the original masks the part of the key to zero
        if isinstance(bias, Tensor) and bias.ndim == 1:
            found[name.replace("qkv.bias", "q_bias")], _, found[name.replace("qkv.bias", "v_bias")] = bias.chunk(3)
    return found


NAMINGS: tuple[Callable[[Tensors], dict[str, Any]], ...] = (
    as_timm,
    from_microsoft,
    from_hugging_face,
    from_mmpretrain,
    with_registers,
    with_rotation,
)
"""In the order in which they are tried; of equally good ones, the first is taken."""


def _needed(tensors: Tensors) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not DERIVED.fullmatch(name)}


def _renamed(tensors: Tensors, changes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    found = {}
    for old, value in tensors.items():
        name = old
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _joined(tensors: Tensors) -> dict[str, Any]:
    """Return query, key and value of each block as one tensor; Swin V2, whose keys have no bias, keeps two biases."""
    found = {name: value for name, value in tensors.items() if "_part." not in name}
    for name in (name for name in tensors if ".attn.q_part." in name):
        three = [tensors.get(name.replace("q_part", part)) for part in ("q_part", "k_part", "v_part")]
        stem, kind = name.split("q_part.")
        if all(isinstance(part, Tensor) for part in three):
            found[f"{stem}qkv.{kind}"] = torch.cat([part for part in three if isinstance(part, Tensor)])
        elif kind == "bias":
            found[f"{stem}q_bias"], found[f"{stem}v_bias"] = three[0], three[2]
    return found


def _later_merging(tensors: Tensors) -> dict[str, Any]:
    """Return a Swin whose merging layers end a stage with these at the start of the next stage."""
    if "layers.0.downsample.reduction.weight" not in tensors:
        return dict(tensors)
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name): value
        for name, value in tensors.items()
    }


def _reordered(value: Any) -> Any:
    """Return weights [..., 4 D] over (channel, row, column) for timm's order (column, row, channel)."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[-1] % 4:
        return value
    return value.reshape(*value.shape[:-1], -1, 2, 2).movedim(-3, -1).transpose(-3, -2).flatten(-3)
