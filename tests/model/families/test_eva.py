from __future__ import annotations

import pytest
import torch
from timm.models.eva import Eva

from mst.config.schema import ModelConfig
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import backbone_spec, build_backbone
from mst.model.families.eva import EvaBackbone
from reference.model_reference import full_attention

NAMES = [
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_ape_224",
    "eva02_small_patch14_224",
    "vit_medium_patch16_rope_reg1_gap_256",
    "vit_pe_core_tiny_patch16_384",
]


def build(name: str) -> Backbone:
    config = ModelConfig(backbone=name, patch_size=8, embed_dim=32, depth=3, num_heads=4)
    backbone = build_backbone(backbone_spec(config, image_size=(16, 24), channels=3)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


@pytest.mark.parametrize("size", [(16, 24), (32, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_importance_is_timms_own_attention(name: str, size: tuple[int, int]) -> None:
    backbone = build(name)
    model = backbone.model
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    prefix = model.num_prefix_tokens
    attention = full_attention(model, model.blocks[-1].attn, images).mean(1)[:, :, prefix:]  # [B, T, N]
    expected = attention[:, 0] if model.cls_token is not None else attention[:, prefix:].mean(1)
    torch.testing.assert_close(backbone.tokens(images).importance, expected, atol=1e-6, rtol=1e-5)


def test_grouped_queries() -> None:
    model = Eva(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0, attn_type="rope", num_kv_heads=2,
        qkv_fused=False, qk_norm=True, use_rot_pos_emb=True, dynamic_img_size=True,
    )  # fmt: skip
    backbone = EvaBackbone(BackboneSpec("eva", (16, 16), 3, 8), model).eval()
    images = torch.randn(2, 3, 16, 32)
    expected = full_attention(model, model.blocks[-1].attn, images).mean(1)[:, 0, 1:]
    tokens = backbone.tokens(images)
    torch.testing.assert_close(tokens.importance, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tokens.cls, model(images), atol=1e-5, rtol=1e-5)


def test_learned_rotations_are_a_function_of_the_seed() -> None:
    config = ModelConfig(backbone="vit_small_patch16_rope_mixed_224", embed_dim=32, depth=2, num_heads=2)
    spec = backbone_spec(config, image_size=(32, 32), channels=3)
    one, same, other = (build_backbone(spec, seed=seed).model.rope.freqs for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.square().sum(0), other.square().sum(0))  # directions differ, lengths do not
