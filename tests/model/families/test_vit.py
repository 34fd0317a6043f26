from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mst.errors import UsageError
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.model.families.vit import VitBackbone
from reference.model_reference import vit_cls_importance, vit_masked_features, vit_received_importance

OPTIONS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "registers": {"reg_tokens": 3},
    "layer_scale": {"init_values": 0.1},
    "scale_norm": {"scale_attn_norm": True},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1},
    "pre_norm": {"pre_norm": True},
    "avg": {"global_pool": "avg"},
    "no_cls": {"class_token": False, "global_pool": "avg"},
    "no_cls_registers": {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
    "no_positions": {"pos_embed": "none"},
}


def build(**options: object) -> VitBackbone:
    spec = BackboneSpec("vit", (24, 16), 3, 8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = VisionTransformer(
            img_size=(24, 16), patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, dynamic_img_size=True,
            **options,
        )  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return VitBackbone(spec, model).eval()


@pytest.mark.parametrize("size", [(24, 16), (8, 8), (16, 40)])
@pytest.mark.parametrize("name", OPTIONS)
def test_importance_equals_the_slow_definition(name: str, size: tuple[int, int]) -> None:
    backbone = build(**OPTIONS[name])
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    importance = backbone.tokens(images).importance
    slow = vit_received_importance if name.startswith("no_cls") else vit_cls_importance
    torch.testing.assert_close(importance, slow(backbone.model, images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_masking_equals_the_slow_definition(name: str) -> None:
    backbone = build(**OPTIONS[name])
    torch.nn.init.normal_(backbone.mask_token)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(4, 3, 16, 32, generator=generator)
    mask = torch.rand(4, 8, generator=generator) < 0.5
    mask[0], mask[1] = True, False
    slow = vit_masked_features(backbone.model, images, mask, backbone.mask_token)
    expected = backbone.model.fc_norm(slow[:, backbone.model.num_prefix_tokens :])
    torch.testing.assert_close(backbone.tokens(images, mask).patches, expected, atol=1e-4, rtol=1e-4)


def test_importance_of_a_long_sequence_without_cls() -> None:
    backbone = build(class_token=False, global_pool="avg")
    images = torch.randn(1, 3, 80, 96, generator=torch.Generator().manual_seed(1))  # 120 tokens: more than one chunk
    torch.testing.assert_close(
        backbone.tokens(images).importance, vit_received_importance(backbone.model, images), atol=1e-6, rtol=1e-5
    )


def test_position_embedding_of_another_grid_takes_gradients() -> None:
    backbone = build().train()
    backbone.tokens(torch.randn(1, 3, 40, 8), importance=False).patches.square().sum().backward()
    assert backbone.model.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 16, 16), "images have 1 channels, this backbone takes 3"),
        ((1, 3, 20, 16), "20x16 is not a multiple of the patch size 8: use 16x16 or 24x16"),
        ((1, 3, 4, 16), "4x16 is smaller than one 8 px patch: use at least 8x8"),
    ],
)
def test_wrong_images(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build()(torch.zeros(shape))


def test_xavier_initialisation_follows_the_fans() -> None:
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 8, embed_dim=32, depth=1, num_heads=2)
    default, xavier = build_backbone(spec), build_backbone(spec, init="xavier_uniform")
    fc1, bound = xavier.model.blocks[0].mlp.fc1.weight, (6 / (32 + 128)) ** 0.5
    assert default.model.blocks[0].mlp.fc1.weight.std() < 0.03
    assert 0.9 * bound < fc1.abs().max() <= bound


@pytest.mark.parametrize("limit", [0, 1024])
def test_both_attention_kernels_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = build_backbone(BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 8, embed_dim=32, depth=2, num_heads=2))
    expected = backbone.tokens(images)
    monkeypatch.setattr("mst.model.attention.EXPLICIT_TOKENS", limit)
    found = backbone.tokens(images)
    assert all(block.attn.fused_attn == (limit == 0) for block in backbone.model.blocks)
    torch.testing.assert_close(found, expected)
