"""Fixed position embeddings: their values, that no step changes them, and what cannot have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.config.schema import ModelConfig
from mst.errors import UsageError
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.backbone_file import load_backbone, save_backbone
from mst.model.build import backbone_spec, build_backbone, untrained_like
from mst.model.families.positions import sines_and_cosines
from mst.model.start import start_from
from reference.positions import position_values

SPEC = BackboneSpec("vit_tiny_patch16_224", (16, 24), 3, 8, embed_dim=16, depth=2, num_heads=2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8, 36]), st.integers(0, 2))
def test_values_are_those_of_the_definition(height: int, wide: int, width: int, prefix: int) -> None:
    rows = [position_values(row, column, width) for row in range(height) for column in range(wide)]
    expected = torch.tensor([*([0.0] * width for _ in range(prefix)), *rows])[None]
    torch.testing.assert_close(sines_and_cosines((height, wide), width, prefix=prefix), expected)


def test_all_other_weights_are_the_same() -> None:
    learned, fixed = (build_backbone(SPEC, seed=3, positions=word) for word in ("learned", "fixed"))
    others = [name for name, weight in learned.state_dict().items() if not weight.equal(fixed.state_dict()[name])]
    assert others == ["model.pos_embed"]
    assert [name for name, weight in fixed.named_parameters() if not weight.requires_grad] == others
    torch.testing.assert_close(fixed.model.pos_embed.data, sines_and_cosines((2, 3), 16, prefix=1))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_small_patch14_reg4_dinov2", 0), ("deit_tiny_distilled_patch16_224", 2), ("eva02_tiny_patch14_224", 1)],
)
def test_networks_with_other_prefix_tokens(name: str, prefix: int) -> None:
    config = ModelConfig(backbone=name, patch_size=8, embed_dim=32, depth=1, num_heads=2, positions="fixed")
    backbone = build_backbone(backbone_spec(config, image_size=(24, 16), channels=3), positions="fixed")
    torch.testing.assert_close(backbone.model.pos_embed.data, sines_and_cosines((3, 2), 32, prefix=prefix))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("swin_tiny_patch4_window7_224", "has no absolute position embeddings"),
        ("vit_small_patch16_dinov3", "has no absolute position embeddings"),
        ("vit_tiny_patch16_224", "is 18 wide, which is no multiple of 4: change --model.embed-dim"),
    ],
)
def test_networks_without_such_positions_are_refused(name: str, said: str) -> None:
    sizes = {} if name != "vit_tiny_patch16_224" else {"embed_dim": 18, "num_heads": 2}
    spec = BackboneSpec(name, (64, 64), 3, 32, **sizes)
    with pytest.raises(UsageError, match=said):
        build_backbone(spec, positions="fixed")


def fixed(size: tuple[int, int], seed: int = 0) -> Backbone:
    spec = BackboneSpec(SPEC.name, size, 3, 8, embed_dim=16, depth=2, num_heads=2)
    return build_backbone(spec, seed=seed, positions="fixed")


def test_a_start_gives_its_own_positions_and_they_stay_fixed(tmp_path: Path) -> None:
    source = build_backbone(SPEC, seed=1).eval()
    save_backbone(tmp_path / "backbone.safetensors", source, {})
    target = fixed((16, 24))
    start_from(target, str(tmp_path))
    assert target.model.pos_embed.equal(source.model.pos_embed)
    assert not target.model.pos_embed.requires_grad


def test_timm_loads_the_weights_and_the_untrained_network_is_the_same_kind(tmp_path: Path) -> None:
    backbone = fixed((16, 24), seed=5).eval()
    save_backbone(tmp_path / "backbone.safetensors", backbone, {"positions": "fixed", "init": "trunc_normal"})
    loaded = load_backbone(tmp_path / "backbone.safetensors")
    images = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(loaded(images), backbone(images))
    torch.testing.assert_close(untrained_like(loaded, seed=5)(images), backbone(images))
    arguments = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    other = timm.create_model(SPEC.name, **arguments).eval()
    other.load_state_dict(backbone.timm_state_dict())
    torch.testing.assert_close(other(images), backbone(images))
