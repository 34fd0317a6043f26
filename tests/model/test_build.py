from __future__ import annotations

import pytest

from mst.config.schema import ModelConfig
from mst.errors import UsageError
from mst.model.build import backbone_spec, build_backbone


@pytest.mark.parametrize(
    ("settings", "size", "said"),
    [
        ({"backbone": "deit_smal_patch16_224"}, (32, 32), "did you mean deit_small_patch16_224"),
        ({"backbone": "resnet50"}, (32, 32), "'resnet50' is not a network of patch tokens"),
        ({}, (36, 32), "crop size 36x32 is not a multiple of the patch size 16: use 32x32 or 48x32"),
        ({}, (8, 8), "crop size 8x8 is smaller than one 16 px patch: use at least 16x16"),
        ({"embed_dim": 30, "num_heads": 4}, (32, 32), "--model.embed-dim 30 is not a multiple of --model.num-heads 4"),
        ({"embed_dim": 32}, (32, 32), "--model.embed-dim 32 is not a multiple of --model.num-heads 6"),
    ],
)
def test_one_clear_line(settings: dict[str, object], size: tuple[int, int], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        build_backbone(backbone_spec(ModelConfig(**settings), image_size=size, channels=3))
    assert "\n" not in str(caught.value)


def test_a_small_vit_is_one_spec() -> None:
    config = ModelConfig(backbone="vit_small_patch16_224", patch_size=4, embed_dim=32, depth=3, num_heads=4)
    backbone = build_backbone(backbone_spec(config, image_size=(32, 32), channels=3), drop_path=0.2)
    assert len(backbone.model.blocks) == 3
    assert (backbone.embed_dim, backbone.patch_size) == (32, 4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "patch_size", "parameters"),
    [("deit_small_patch16_224", 16, 21.67e6), ("vit_tiny_patch16_224", 16, 5.52e6)],
)
def test_own_sizes(name: str, patch_size: int, parameters: float) -> None:
    spec = backbone_spec(ModelConfig(backbone=name), image_size=(224, 224), channels=3)
    assert spec.patch_size == patch_size
    model = build_backbone(spec).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)
