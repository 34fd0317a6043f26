"""Where transformers has its own class for a network: which class, its configuration, and the names of the weights.

The names are those of the files on the hub; newer versions of transformers rename them when they read a file. Each
weight of timm is one of transformers', but for the fused projection of queries, keys and values, which is three.
Letters (docs/algorithm.md): D embedding size, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from timm.layers.activations import GELU, GELUTanh, QuickGELU
from timm.layers.mlp import Mlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mst.model.backbone import Backbone

Kind = Literal["vit", "deit", "swin", "swinv2", "dinov2", "dinov2_with_registers", "dinov3_vit"]
"""transformers' `model_type`."""
STEMS: dict[str, str] = {
    "vit": "ViT",
    "deit": "DeiT",
    "swin": "Swin",
    "swinv2": "Swinv2",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "dinov3_vit": "DINOv3ViT",
}
"""Kind -> what the names of its classes begin with."""
EMBEDDINGS = [
    (r"cls_token", "embeddings.cls_token"),
    (r"dist_token", "embeddings.distillation_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
]
ATTENTION = [
    (r"attn\.qkv\.(\w+)", r"attention.attention.PART.\1"),
    (r"attn\.proj\.(\w+)", r"attention.output.dense.\1"),
]
OUTER = [
    (r"norm1\.(\w+)", r"layernorm_before.\1"),
    (r"norm2\.(\w+)", r"layernorm_after.\1"),
    (r"mlp\.fc1\.(\w+)", r"intermediate.dense.\1"),
    (r"mlp\.fc2\.(\w+)", r"output.dense.\1"),
]
SCALED = [
    (r"(norm[12])\.(\w+)", r"\1.\2"),
    (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
    (r"mlp\.(fc[12])\.(\w+)", r"mlp.\1.\2"),
]
WINDOWS = [
    (r"attn\.qkv\.(\w+)", r"attention.self.PART.\1"),
    (r"attn\.q_bias", "attention.self.query.bias"),
    (r"attn\.v_bias", "attention.self.value.bias"),
    (r"attn\.proj\.(\w+)", r"attention.output.dense.\1"),
    (r"attn\.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    (r"attn\.logit_scale", "attention.self.logit_scale"),
    (r"attn\.cpb_mlp\.(\d)\.(\w+)", r"attention.self.continuous_position_bias_mlp.\1.\2"),
]
ROTARY = [
    (r"(norm[12])\.(\w+)", r"\1.\2"),
    (r"attn\.qkv\.(\w+)", r"attention.PART_proj.\1"),
    (r"attn\.q_bias", "attention.query_proj.bias"),
    (r"attn\.v_bias", "attention.value_proj.bias"),
    (r"attn\.proj\.(\w+)", r"attention.o_proj.\1"),
    (r"gamma_([12])", r"layer_scale\1.lambda1"),
    (r"mlp\.fc1_g\.(\w+)", r"mlp.gate_proj.\1"),
    (r"mlp\.fc1(?:_x)?\.(\w+)", r"mlp.up_proj.\1"),
    (r"mlp\.fc2\.(\w+)", r"mlp.down_proj.\1"),
]
Pooling = Literal["pooler_output", "both tokens", "patch tokens"]


@dataclass(frozen=True)
class Native:
    """A network of transformers' own.

    Attributes:
        kind: its `model_type`.
        config: the configuration that is not the default.
        pooling: how this package's features follow from its outputs.
        prefix_tokens: tokens before the patch tokens in `last_hidden_state`.
    """

    kind: Kind
    config: dict[str, Any]
    pooling: Pooling
    prefix_tokens: int

    @property
    def stem(self) -> str:
        """What the names of its classes begin with."""
        return STEMS[self.kind]


class NotNative(Exception):
    """Transformers has no class for a network; the message says why."""


def native(backbone: Backbone) -> Native:
    """Return transformers' own network for a backbone.

    Raises:
        NotNative: there is none.
    """
    network: Any = backbone.model
    if isinstance(network, SwinTransformer | SwinTransformerV2):
        return _swin(backbone, network)
    if type(network) is Eva:
        return _rotary(backbone, network)
    if type(network) in (VisionTransformer, VisionTransformerDistilled):
        return _vit(backbone, network)
    raise NotNative(f"it has none for timm's {type(network).__name__}")


def _common(backbone: Backbone, network: Any, block: Any) -> dict[str, Any]:
    height, width = backbone.spec.image_size
    return {
        "image_size": height if height == width else [height, width],
        "num_channels": backbone.spec.channels,
        "layer_norm_eps": network.norm.eps,
        "hidden_act": _activation(block.mlp.act),
    }


def _activation(layer: nn.Module) -> str:
    if isinstance(layer, QuickGELU):
        return "quick_gelu"
    if isinstance(layer, nn.SiLU):
        return "silu"
    if isinstance(layer, GELU) or (isinstance(layer, nn.GELU) and layer.approximate == "none"):
        return "gelu"
    if isinstance(layer, GELUTanh | nn.GELU):
        return "gelu_pytorch_tanh"
    raise NotNative(f"its activation is {type(layer).__name__}")


def _is_plain(layer: nn.Module | None) -> bool:
    return layer is None or isinstance(layer, nn.Identity)


def _vit(backbone: Backbone, network: Any) -> Native:
    block = network.blocks[0]
    distilled, scaled = isinstance(network, VisionTransformerDistilled), not _is_plain(block.ls1)
    for reason, wrong in (
        ("it has no CLS token", network.cls_token is None),
        ("it has no position embedding", network.pos_embed is None),
        ("it has a norm before its blocks", not _is_plain(network.norm_pre)),
        (f"it pools by {network.global_pool}", network.global_pool != "token" or network.attn_pool is not None),
        ("its norm is after the pooling", not _is_plain(network.fc_norm)),
        ("it norms queries and keys", not _is_plain(block.attn.q_norm)),
        ("its MLP is gated", type(block.mlp) is not Mlp),
    ):
        if wrong:
            raise NotNative(reason)
    registers, size = network.num_reg_tokens, backbone.spec.image_size
    kind: Kind = "deit" if distilled else "dinov2_with_registers" if registers else "dinov2" if scaled else "vit"
    wide, rest = block.mlp.fc1.out_features, divmod(block.mlp.fc1.out_features, backbone.embed_dim)
    config = _common(backbone, network, block) | {
        "patch_size": backbone.patch_size,
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": block.attn.num_heads,
        "qkv_bias": block.attn.qkv.bias is not None,
    }
    if kind in ("vit", "deit"):
        if registers:
            raise NotNative("it has registers and a distillation token")
        more = {"intermediate_size": wide, "pooler_act": "linear"}
        return Native(kind, config | more, "both tokens" if distilled else "pooler_output", 1 + distilled)
    if size[0] != size[1]:
        raise NotNative(
            f"its images are {size[0]}x{size[1]}, and {STEMS[kind]}Model takes its positions for square ones"
        )
    if rest[1]:
        raise NotNative("the width of its MLP is no multiple of its own")
    more = {"mlp_ratio": rest[0]} | ({"num_register_tokens": registers} if registers else {})
    return Native(kind, config | more, "pooler_output", 1 + registers)


def _swin(backbone: Backbone, network: Any) -> Native:
    blocks = [block for stage in network.layers for block in stage.blocks]
    windows = {side for block in blocks for side in block.window_size}
    kind: Kind = "swin" if isinstance(network, SwinTransformer) else "swinv2"
    if len(windows) > 1 and kind == "swin":
        raise NotNative(f"its windows have sides of {' and '.join(map(str, sorted(windows)))} at this image size")
    if type(blocks[0].mlp) is not Mlp:
        raise NotNative("its MLP is gated")
    size = network.patch_embed.patch_size
    config = _common(backbone, network, blocks[0]) | {
        "patch_size": size[0],
        "embed_dim": network.embed_dim,
        "depths": [len(stage.blocks) for stage in network.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in network.layers],
        "window_size": max(windows),
        "mlp_ratio": blocks[0].mlp.fc1.out_features / network.embed_dim,
        "qkv_bias": True,
        "drop_path_rate": 0.0,
    }
    if kind == "swinv2":
        config["pretrained_window_sizes"] = [stage.blocks[0].attn.pretrained_window_size[0] for stage in network.layers]
    return Native(kind, config, "pooler_output", 0)


def _rotary(backbone: Backbone, network: Any) -> Native:
    block = network.blocks[0]
    for reason, wrong in (
        ("its rotary embedding is not DINOv3's", type(network.rope).__name__ != "RotaryEmbeddingDinoV3"),
        ("it has position embeddings", network.pos_embed is not None),
        ("it has no CLS token", network.cls_token is None),
        ("its norm is after the pooling", not _is_plain(network.fc_norm)),
        ("it has a norm before its blocks", not _is_plain(network.norm_pre)),
        ("it has no layer scale", block.gamma_1 is None),
        ("it norms queries and keys", not _is_plain(block.attn.q_norm)),
        (f"it pools by {network.global_pool}", network.global_pool not in ("token", "avg")),
        ("its MLP is of another kind", type(block.mlp) not in (Mlp, SwiGLU)),
    ):
        if wrong:
            raise NotNative(reason)
    biased, registers = block.attn.q_bias is not None, network.num_prefix_tokens - 1
    config = _common(backbone, network, block) | {
        "patch_size": backbone.patch_size,
        "hidden_size": backbone.embed_dim,
        "intermediate_size": block.mlp.fc2.in_features,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": block.attn.num_heads,
        "query_bias": biased,
        "key_bias": False,
        "value_bias": biased,
        "rope_theta": network.rope.temperature,
        "num_register_tokens": registers,
        "use_gated_mlp": type(block.mlp) is SwiGLU,
    }
    return Native(
        "dinov3_vit", config, "pooler_output" if network.global_pool == "token" else "patch tokens", 1 + registers
    )


def names(kind: str, timm_weights: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return each of timm's names with transformers' names of the same numbers, which lie one after the other in it.

    Raises:
        NotNative: transformers' network has no such weight.
    """
    return {name: _named(kind, name) for name in timm_weights}


def _named(kind: str, name: str) -> tuple[str, ...]:
    if kind in ("swin", "swinv2"):
        found = _windows(name)
    elif kind == "dinov3_vit":
        found = _matched(name, EMBEDDINGS, "") or _matched(name, ROTARY, r"layer.\1.", r"blocks\.(\d+)\.")
        found = found and re.sub(
            r"^layernorm\.", "norm.", found.replace("patch_embeddings.projection", "patch_embeddings")
        )
        found = found and re.sub(r"(query|value)_proj", lambda match: f"{match[1][0]}_proj", found)
    else:
        inner = OUTER if kind in ("vit", "deit") else SCALED
        found = _matched(name, EMBEDDINGS, "")
        found = found or _matched(name, [*ATTENTION, *inner], r"encoder.layer.\1.", r"blocks\.(\d+)\.")
    if found is None:
        raise NotNative(f"transformers' {STEMS[kind]}Model has no weight {name}")
    if "PART" not in found:
        return (found,)
    parts = ("q", "k", "v") if kind == "dinov3_vit" else ("query", "key", "value")
    return tuple(found.replace("PART", part) for part in parts)


def _matched(name: str, table: list[tuple[str, str]], before: str, prefix: str = "") -> str | None:
    start = re.match(prefix, name)
    if start is None:
        return None
    rest = name[start.end() :]
    for pattern, target in table:
        if match := re.fullmatch(pattern, rest):
            return start.expand(before) + match.expand(target)
    return None


def _windows(name: str) -> str | None:
    """Return the name in a Swin, whose stages there end with the merging that timm's next stage begins with."""
    if match := re.fullmatch(r"patch_embed\.norm\.(\w+)", name):
        return f"embeddings.norm.{match[1]}"
    if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(reduction|norm)\.(\w+)", name):
        return f"encoder.layers.{int(match[1]) - 1}.downsample.{match[2]}.{match[3]}"
    found = _matched(name, EMBEDDINGS, "")
    return found or _matched(
        name, [*WINDOWS, *OUTER], r"encoder.layers.\1.blocks.\2.", r"layers\.(\d+)\.blocks\.(\d+)\."
    )
