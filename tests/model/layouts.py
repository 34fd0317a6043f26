"""The same weights under the names and wrappers of other projects, made from this package's own networks."""

from __future__ import annotations

import argparse
import datetime
import enum
import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mst.model.backbone import Backbone

Weights = dict[str, Tensor]


class Phase(enum.Enum):
    """An enumeration of a training script."""

    TRAIN = 1


class Options(dict):  # type: ignore[type-arg]
    """A dictionary with attributes, as many trainers keep their settings in."""


def heads() -> Weights:
    return {"head.mlp.0.weight": torch.ones(3, 2), "head.last_layer.weight": torch.ones(2)}


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def shifted(weights: Weights) -> Weights:
    return {name: value + 1 for name, value in weights.items()}


def habits() -> dict[str, Any]:
    """What training scripts write beside the weights."""
    return {
        "args": argparse.Namespace(lr=1e-3, out=Path("runs"), when=datetime.datetime(2024, 1, 2)),
        "epoch": np.int64(3),
        "best": np.float64(71.5),
        "loss_curve": np.zeros(4, np.float32),
        "config": Options(model=Options(name="vit")),
        "meters": defaultdict(list, {"loss": [1.0]}),
        "seen": {1, 2},
        "phase": Phase.TRAIN,
        "count": Counter("aab"),
        "path": Path("weights.pth"),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "rng": torch.get_rng_state(),
        "size": torch.Size([2, 3]),
        "optimizer": {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }


WRAPPED: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda w: w,
    "DINO": lambda w: {
        **habits(),
        "student": under("module.backbone.", shifted(w)) | under("module.", heads()),
        "teacher": under("backbone.", w) | heads(),
        "dino_loss": {"center": torch.zeros(1, 9)},
    },
    "iBOT": lambda w: {**habits(), "student": under("module.backbone.", shifted(w)), "teacher": under("backbone.", w)},
    "DINO, exported teacher": lambda w: {"teacher": under("module.backbone.", w) | under("module.", heads())},
    "MAE": lambda w: {
        **habits(),
        "model": {**w, "mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 5, 8), **heads()},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    },
    "DeiT": lambda w: {**habits(), "model": shifted(w) | heads(), "model_ema": w | heads(), "scaler": {}},
    "timm": lambda w: {
        **habits(),
        "arch": "vit",
        "state_dict": shifted(w),
        "state_dict_ema": w | heads(),
        "version": 2,
    },
    "torch.compile": lambda w: {"model": under("_orig_mod.", w)},
    "compiled in DDP": lambda w: {"model": under("_orig_mod.module.", w)},
    "DDP": lambda w: {"state_dict": OrderedDict(under("module.", w))},
    "MoCo v3": lambda w: {
        **habits(),
        "state_dict": under("module.base_encoder.", w) | under("module.momentum_encoder.", shifted(w)),
    },
    "I-JEPA": lambda w: {
        **habits(),
        "encoder": under("module.", shifted(w)),
        "predictor": {"module.predictor_embed.weight": torch.ones(2, 2)},
        "target_encoder": under("module.", w),
    },
    "Lightning": lambda w: {
        **habits(),
        "state_dict": under("student_backbone.", shifted(w)) | under("teacher_backbone.", w),
        "pytorch-lightning_version": "2.1",
        "hyper_parameters": Options(lr=0.1),
    },
    "Lightning of a model": lambda w: {
        "state_dict": under("model.backbone.", w) | {"model.fc.weight": torch.ones(2, 2)}
    },
    "encoder": lambda w: under("encoder.", w),
    "vit": lambda w: under("vit.", w) | {"classifier.weight": torch.ones(2, 2)},
    "network.0": lambda w: {"net": {"inner": under("network.0.", w)}},
    "SimMIM": lambda w: {"model": under("encoder.", w) | {"decoder.0.weight": torch.ones(2, 2, 1, 1)}},
    "DINOv2's trainer": lambda w: {"model": under("student.backbone.", shifted(w)) | under("teacher.backbone.", w)},
    "BYOL": lambda w: {"online_network": shifted(w), "target_network": w},
    "OpenCLIP": lambda w: {"state_dict": under("module.visual.trunk.", w) | {"module.logit_scale": torch.ones(())}},
    "a pair of weights and step": lambda w: (dict(w), 1000),
    "parameters": lambda w: {name: nn.Parameter(value) for name, value in w.items()},
    "half": lambda w: {"model": {name: value.half() for name, value in w.items()}},
    "bfloat16": lambda w: {"model": {name: value.bfloat16() for name, value in w.items()}},
    "double": lambda w: {"model": {name: value.double() for name, value in w.items()}},
    "views of one storage": lambda w: {"model": views(w)},
}
"""By project, what its script saves; given the weights that are to be found."""


def views(weights: Weights) -> Weights:
    together = torch.cat([value.flatten() for value in weights.values()])
    ends = np.cumsum([value.numel() for value in weights.values()])
    parts = [together[end - value.numel() : end] for end, value in zip(ends, weights.values(), strict=True)]
    return {name: part.view(like.shape) for (name, like), part in zip(weights.items(), parts, strict=True)}


def renamed(weights: Weights, *changes: tuple[str, str]) -> Weights:
    found = {}
    for old, value in weights.items():
        name = old
        for pattern, replacement in changes:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def split(weights: Weights, words: tuple[str, str, str]) -> Weights:
    """Write `X.qkv.Y` as `X.word.Y` three times."""
    found = {}
    for name, value in weights.items():
        if ".qkv." in name:
            found |= {name.replace("qkv", word): part for word, part in zip(words, value.chunk(3), strict=True)}
        else:
            found[name] = value
    return found


ATTENTION = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
HF_VIT = (
    (r"attn\.attention\.attention", "attention.attention"),
    (r"attn\.proj", "attention.output.dense"),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^reg_token", "embeddings.register_tokens"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "embeddings.norm"),
    (r"^blocks", "encoder.layer"),
)


def hf_vit(backbone: Backbone) -> Weights:
    split_up = split(backbone.timm_state_dict(), ATTENTION)
    return renamed(
        split_up,
        *HF_VIT,
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"^norm\.", "layernorm."),
    )


def hf_dinov2(backbone: Backbone) -> Weights:
    found = renamed(
        split(backbone.timm_state_dict(), ATTENTION),
        *HF_VIT,
        (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"),
        (r"^norm\.", "layernorm."),
    )
    return {**found, "embeddings.mask_token": torch.zeros(1, 32)}


def hf_dinov3(backbone: Backbone) -> Weights:
    return renamed(
        split(backbone.timm_state_dict(), ("q_proj", "k_proj", "v_proj")),
        (r"attn\.proj", "attention.o_proj"),
        ("attn", "attention"),
        (r"^cls_token", "embeddings.cls_token"),
        (r"^reg_token", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
        (r"^blocks", "layer"),
        (r"gamma_(\d)", r"layer_scale\1.lambda1"),
        (r"mlp\.fc1", "mlp.up_proj"),
        (r"mlp\.fc2", "mlp.down_proj"),
    )


def meta_dinov3(backbone: Backbone) -> Weights:
    found = renamed(backbone.timm_state_dict(), (r"gamma_(\d)", r"ls\1.gamma"), (r"^reg_token", "storage_tokens"))
    biases = {n.replace("weight", "bias"): torch.zeros(len(v)) for n, v in found.items() if n.endswith("qkv.weight")}
    masks = {f"{name}_mask": torch.ones_like(value) for name, value in biases.items()}
    return {**found, **biases, **masks, "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def meta_dinov2(backbone: Backbone) -> Weights:
    """Blocks in chunks of one, and a CLS token whose position is not yet added."""
    weights = dict(backbone.timm_state_dict())
    if "reg_token" in weights:
        weights["register_tokens"] = weights.pop("reg_token")
        first = torch.full_like(weights["cls_token"], 0.25)
        weights["cls_token"] = weights["cls_token"] - first
        weights["pos_embed"] = torch.cat([first, weights["pos_embed"]], 1)
    chunked = renamed(weights, (r"^blocks\.(\d+)\.", r"blocks.\1.\1."))
    return {**chunked, "mask_token": torch.zeros(1, 32)}


def earlier_merging(weights: Weights) -> Weights:
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): value
        for name, value in weights.items()
    }


def swin_buffers(weights: Weights) -> Weights:
    first = [name for name in weights if name.endswith("blocks.0.attn.qkv.weight")]
    index = {name.replace("qkv.weight", "relative_position_index"): torch.zeros(4, 4).long() for name in first}
    return index | {name.replace("0.attn.qkv.weight", "1.attn_mask"): torch.zeros(2, 4, 4) for name in first}


def microsoft_swin(backbone: Backbone) -> Weights:
    weights = backbone.timm_state_dict()
    return {
        **earlier_merging(weights),
        **swin_buffers(weights),
        "head.weight": torch.ones(5, 64),
        "head.bias": torch.ones(5),
    }


def hf_swin(backbone: Backbone) -> Weights:
    weights = earlier_merging(backbone.timm_state_dict())
    return renamed(
        split(weights, ("query", "key", "value")) | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(4)},
        (r"attn\.proj", "attention.output.dense"),
        ("attn", "attention.self"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "embeddings.norm"),
        (r"^layers", "encoder.layers"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"norm1", "layernorm_before"),
        (r"norm2", "layernorm_after"),
        (r"^norm\.", "layernorm."),
    )


def hf_swin_v2(backbone: Backbone) -> Weights:
    weights = renamed(
        hf_swin(backbone),
        (r"self\.q_bias", "self.query.bias"),
        (r"self\.v_bias", "self.value.bias"),
        (r"self\.cpb_mlp", "self.continuous_position_bias_mlp"),
    )
    return {name: value for name, value in weights.items() if not name.endswith(("k_bias", "key.bias"))}


def mmpretrain_vit(backbone: Backbone) -> Weights:
    return renamed(
        backbone.timm_state_dict(),
        (r"^patch_embed\.proj", "patch_embed.projection"),
        (r"^blocks", "layers"),
        (r"norm(\d)", r"ln\1"),
        (r"^norm\.", "ln1."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
    )


def unfolded(value: Tensor) -> Tensor:
    """Write weights [..., 4 D] in the order of `nn.Unfold`: channel, row, column."""
    column_row_channel = value.reshape(*value.shape[:-1], 2, 2, -1)
    return torch.einsum("...xyc->...cyx", column_row_channel).flatten(-3)


def mmpretrain_swin(backbone: Backbone) -> Weights:
    weights = earlier_merging(backbone.timm_state_dict())
    merged = {name: unfolded(value) if "downsample" in name else value for name, value in weights.items()}
    return renamed(
        merged,
        (r"^patch_embed\.proj", "patch_embed.projection"),
        (r"^layers", "stages"),
        (r"attn\.", "attn.w_msa."),
        (r"mlp\.fc1", "ffn.layers.0.0"),
        (r"mlp\.fc2", "ffn.layers.1"),
        (r"^norm\.", "norm3."),
    )
