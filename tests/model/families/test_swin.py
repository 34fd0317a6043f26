from __future__ import annotations

import pytest
import timm
import torch

from mst.config.schema import ModelConfig
from mst.errors import UsageError
from mst.model.backbone import Backbone
from mst.model.build import backbone_spec, build_backbone, timm_arguments
from mst.model.families.swin import window_side
from mst.model.families.windows import attend_in_windows, cut
from reference.model_reference import full_attention
from reference.swin_reference import shifted_window_attention


def build(size: tuple[int, int], name: str = "swin_tiny_patch4_window7_224", patch_size: int = 32) -> Backbone:
    config = ModelConfig(backbone=name, patch_size=patch_size, embed_dim=8, depth=2, num_heads=1)
    backbone = build_backbone(backbone_spec(config, image_size=size, channels=3)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def random_images(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("cells", "own", "side"),
    [(7, 7, 7), (4, 7, 8), (3, 7, 6), (5, 7, 5), (6, 7, 6), (8, 8, 8), (2, 7, 8), (1, 7, 8), (14, 7, 7), (12, 12, 12)],
)
def test_window_side(cells: int, own: int, side: int) -> None:
    assert window_side(cells, own) == side
    for length in (cells, 2 * cells, 4 * cells, 8 * cells):
        assert length <= side or length % side == 0


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize("size", [(56, 56), (24, 40)])
def test_importance_is_timms_own_attention(name: str, size: tuple[int, int]) -> None:
    backbone = build(size, name, patch_size=8)
    images = random_images(size)
    last = backbone.model.layers[-1].blocks[-1]
    last.lean = False  # so that its attention can be watched
    attention = full_attention(backbone.model, last.attn, images)  # one window: [B, A, N, N]
    expected = attention.mean(dim=(1, 2))
    torch.testing.assert_close(backbone.tokens(images).importance, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("size", [(3, 3), (6, 6), (7, 14), (9, 5), (8, 10)])
@torch.no_grad()
def test_padding_takes_no_part(size: tuple[int, int], shifted: bool, importance: bool) -> None:
    block = build((56, 56), patch_size=8).model.layers[1].blocks[1]  # window 7
    assert block.window_size == (7, 7)
    maps = torch.randn(2, *size, 16, generator=torch.Generator().manual_seed(2))
    windows = cut(size, (7, 7), shifted=shifted, device=maps.device)
    out, received = attend_in_windows(block.attn, maps, windows, importance)
    shift = tuple(3 if shifted and length > 7 else 0 for length in size)
    for index in range(2):
        expected, expected_received = shifted_window_attention(block.attn, maps[index], shift)
        torch.testing.assert_close(out[index], expected, atol=1e-5, rtol=1e-4)
        if received is not None:
            torch.testing.assert_close(received[index], expected_received, atol=1e-6, rtol=1e-4)


def test_importance_sums_to_one_at_any_size() -> None:
    backbone = build((56, 56), patch_size=8)
    for size in [(56, 56), (24, 24), (24, 40), (96, 64), (8, 128)]:
        importance = backbone.tokens(random_images(size)).importance
        torch.testing.assert_close(importance.sum(1), torch.ones(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_equals_timm_at_another_size_that_windows_tile(name: str) -> None:
    side = 8 * int(name.split("window")[1].split("_", maxsplit=1)[0])
    backbone = build((side, side), name, patch_size=8)
    arguments = {**timm_arguments(backbone.spec), "img_size": (2 * side, side)}
    model = timm.create_model(name, **arguments).eval()
    model.load_state_dict(backbone.timm_state_dict(), strict=True)
    images = random_images((2 * side, side))
    torch.testing.assert_close(backbone(images), model(images), atol=1e-4, rtol=1e-4)


def test_a_masked_token_hides_its_pixels_and_no_others() -> None:
    backbone = build((56, 56), patch_size=8)
    images = random_images((16, 24), count=1)
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, 4] = True  # row 1, column 1
    hidden = torch.zeros(16, 24, dtype=torch.bool)
    hidden[8:, 8:16] = True
    expected = backbone.tokens(images, mask).patches
    inside, outside = images.clone(), images.clone()
    inside[..., hidden] += 5
    torch.testing.assert_close(backbone.tokens(inside, mask).patches, expected)
    outside[0, 0, 7, 7] += 5
    assert not torch.allclose(backbone.tokens(outside, mask).patches, expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "swin_s3_tiny_224"}, "swin_s3_tiny_224 has windows of several sizes"),
        ({"backbone": "swin_tiny_patch4_window7_224", "patch_size": 12}, "patch_size 12 is not a multiple of 8"),
    ],
)
def test_one_clear_line(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_backbone(backbone_spec(ModelConfig(**settings), image_size=(96, 96), channels=3))


def test_own_sizes() -> None:
    config = ModelConfig(backbone="swin_tiny_patch4_window7_224")
    backbone = build_backbone(backbone_spec(config, image_size=(224, 224), channels=3))
    assert (backbone.patch_size, backbone.embed_dim) == (32, 768)
    assert sum(p.numel() for p in backbone.model.parameters()) == 27_519_354
