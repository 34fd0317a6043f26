"""One set of promises that every backbone adapter keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from mst.config.schema import ModelConfig
from mst.export.timm_folder import timm_outputs, write_timm
from mst.model.backbone import Backbone
from mst.model.build import backbone_spec, build_backbone, timm_arguments
from reference.module_reference import fill_with_nan


@dataclass(frozen=True)
class Case:
    """A tiny backbone of one family."""

    name: str
    size: tuple[int, int]
    other_size: tuple[int, int]
    patch_size: int | None = None
    embed_dim: int | None = 32
    depth: int | None = 2
    num_heads: int | None = 2
    channels: int = 3

    def build(self, *, drop_path: float = 0.0, seed: int = 0) -> Backbone:
        config = ModelConfig(
            backbone=self.name,
            patch_size=self.patch_size,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
        )
        spec = backbone_spec(config, image_size=self.size, channels=self.channels)
        return build_backbone(spec, drop_path=drop_path, seed=seed)


CASES = {
    "deit": Case("deit_tiny_patch16_224", (48, 48), (32, 32)),
    "patch4": Case("vit_small_patch16_224", (32, 32), (16, 16), patch_size=4),
    "non-square": Case("vit_tiny_patch16_224", (32, 48), (48, 16), patch_size=8),
    "grey": Case("deit_small_patch16_224", (32, 32), (16, 16), channels=1),
    "six-channel": Case("deit_small_patch16_224", (32, 32), (16, 48), channels=6),
    "distilled": Case("deit_tiny_distilled_patch16_224", (32, 32), (48, 48)),
    "deit3": Case("deit3_small_patch16_224", (32, 32), (48, 32)),
    "dinov2": Case("vit_small_patch14_dinov2", (28, 28), (42, 28)),
    "dinov2-swiglu": Case("vit_giant_patch14_dinov2", (28, 28), (14, 28)),
    "registers": Case("vit_small_patch14_reg4_dinov2", (28, 42), (28, 28)),
    "clip": Case("vit_base_patch16_clip_224", (32, 32), (16, 16)),
    "gap": Case("vit_base_patch16_siglip_gap_224", (32, 32), (48, 32)),
    "dinov3": Case("vit_small_patch16_dinov3", (32, 48), (48, 32), num_heads=2),
    "dinov3-swiglu": Case("vit_small_plus_patch16_dinov3_qkvb", (32, 32), (16, 32), num_heads=2),
    "eva02": Case("eva02_tiny_patch14_224", (28, 28), (42, 28), num_heads=2),
    "rope-mixed": Case("vit_small_patch16_rope_mixed_224", (32, 32), (48, 32), num_heads=2),
    "rope-gap": Case("vit_medium_patch16_rope_reg1_gap_256", (32, 32), (48, 32), num_heads=2),
    "swin": Case("swin_tiny_patch4_window7_224", (64, 64), (32, 96), embed_dim=8, num_heads=1),
    "swin-non-square": Case("swin_small_patch4_window7_224", (96, 160), (64, 32), embed_dim=8, num_heads=1),
    "swin-patch16": Case("swin_tiny_patch4_window7_224", (32, 32), (16, 48), 16, embed_dim=8, num_heads=1, channels=1),
    "swinv2": Case("swinv2_tiny_window8_256", (64, 64), (96, 32), embed_dim=8, num_heads=1),
    "swinv2-non-square": Case("swinv2_small_window16_256", (64, 160), (32, 96), embed_dim=8, num_heads=1),
    "pe-spatial": Case("vit_pe_spatial_tiny_patch16_512", (32, 32), (48, 32), num_heads=2),
    "flexivit": Case("flexivit_small", (32, 32), (16, 48)),
    "wide-stem": Case("vit_small_patch32_224", (64, 64), (32, 96)),
    "siglip": Case("vit_base_patch16_siglip_224", (32, 32), (48, 32)),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def random_images(case: Case, size: tuple[int, int], count: int = 2) -> Tensor:
    return torch.randn(count, case.channels, *size, generator=torch.Generator().manual_seed(5))


class TestBackbone:
    def test_tokens(self, case: Case) -> None:
        backbone = case.build().eval()
        for size in (case.size, case.other_size):
            tokens = backbone.tokens(random_images(case, size))
            h, w = (side // backbone.patch_size for side in size)
            assert tokens.grid == (h, w)
            assert tokens.cls.shape == (2, backbone.embed_dim)
            assert tokens.patches.shape == (2, h * w, backbone.embed_dim)
            assert tokens.importance is not None
            assert tokens.importance.shape == (2, h * w)
            assert tokens.importance.dtype == torch.float32
            assert not tokens.importance.requires_grad
            assert (tokens.importance >= 0).all()
            assert (tokens.importance.sum(1) <= 1 + 1e-5).all()

    def test_importance_does_not_change_the_tokens(self, case: Case) -> None:
        backbone = case.build().eval()
        images = random_images(case, case.other_size)
        read, plain = backbone.tokens(images), backbone.tokens(images, importance=False)
        assert plain.importance is None
        torch.testing.assert_close(read.cls, plain.cls)
        torch.testing.assert_close(read.patches, plain.patches)
        torch.testing.assert_close(backbone(images), plain.cls)

    def test_weights_and_features_are_timms(self, case: Case) -> None:
        backbone = case.build().eval()
        model = timm.create_model(case.name, **timm_arguments(backbone.spec)).eval()
        model.load_state_dict(backbone.timm_state_dict(), strict=True)
        images = random_images(case, case.size)
        torch.testing.assert_close(backbone(images), model(images))

    def test_exports_to_timm(self, case: Case, tmp_path: Path) -> None:
        backbone = case.build(seed=3).eval()
        (tmp_path / "timm").mkdir()
        write_timm(backbone, tmp_path / "timm")
        own = random_images(case, case.size)
        torch.testing.assert_close(
            timm_outputs(tmp_path / "timm", own)["features"], backbone(own).detach(), rtol=1e-5, atol=1e-5
        )
        loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        images = random_images(case, case.other_size)
        if backbone.SAME_AT_ANY_SIZE:
            torch.testing.assert_close(loaded(images), backbone(images), rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(AssertionError, match="doesn't match model"):
                loaded(images)

    def test_images_do_not_mix(self, case: Case) -> None:
        backbone = case.build().eval()
        images = random_images(case, case.other_size, count=3)
        together = backbone.tokens(images)
        for index in range(3):
            alone = backbone.tokens(images[index : index + 1])
            torch.testing.assert_close(together.cls[index], alone.cls[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.importance[index], alone.importance[0], atol=1e-5, rtol=1e-4)

    def test_hidden_pixels_have_no_effect(self, case: Case) -> None:
        backbone = case.build().eval()
        torch.nn.init.normal_(backbone.mask_token)
        images = random_images(case, case.other_size)
        h, w = (side // backbone.patch_size for side in case.other_size)
        mask = torch.zeros(2, h * w, dtype=torch.bool)
        mask[0, 0] = mask[1, -1] = True
        changed = images.clone()
        p = backbone.patch_size
        changed[0, :, :p, :p] += 3
        changed[1, :, -p:, -p:] -= 3
        torch.testing.assert_close(backbone.tokens(images, mask).patches, backbone.tokens(changed, mask).patches)
        assert not torch.allclose(backbone.tokens(images, mask).patches, backbone.tokens(images).patches, atol=1e-4)
        visible = backbone.tokens(images, torch.zeros_like(mask))
        torch.testing.assert_close(visible.patches, backbone.tokens(images).patches)

    def test_gradients_reach_every_parameter(self, case: Case) -> None:
        backbone = case.build(drop_path=0.1).train()
        images = random_images(case, case.other_size)
        h, w = (side // backbone.patch_size for side in case.other_size)
        mask = torch.arange(2 * h * w).view(2, -1) % 2 == 0
        tokens = backbone.tokens(images, mask, importance=False)
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(tokens.patches.shape, generator=generator)
        (tokens.cls.square().sum() + (tokens.patches * weight).sum()).backward()
        missing = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []

    def test_init_weights_writes_everything(self, case: Case) -> None:
        backbone = case.build(seed=1)
        expected = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        fill_with_nan(backbone)
        state = torch.get_rng_state()
        backbone.init_weights(1)
        assert torch.equal(state, torch.get_rng_state())
        for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
            assert tensor.isfinite().all(), name
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
        backbone.init_weights(2)
        assert any(not torch.equal(tensor, expected[name]) for name, tensor in backbone.state_dict().items())

    def test_building_leaves_the_random_state_alone(self, case: Case) -> None:
        state = torch.get_rng_state()
        case.build()
        assert torch.equal(state, torch.get_rng_state())

    def test_intermediate(self, case: Case) -> None:
        backbone = case.build().eval()
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # Swin V2 starts with blocks that do nothing
        images = random_images(case, case.other_size)
        found = backbone.intermediate(images, 2)
        assert len(found) == 2
        last = backbone.tokens(images, importance=False)
        torch.testing.assert_close(found[-1].cls, last.cls)
        torch.testing.assert_close(found[-1].patches, last.patches)
        assert not torch.equal(found[0].patches, last.patches)

    def test_spec_survives_json(self, case: Case) -> None:
        spec = case.build().spec
        assert type(spec).from_json(json.loads(json.dumps(spec.to_json()))) == spec

    def test_bfloat16(self, case: Case) -> None:
        backbone = case.build().eval()
        images = random_images(case, case.other_size)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = backbone.tokens(images)
        assert tokens.importance.dtype == torch.float32
        torch.testing.assert_close(tokens.importance, backbone.tokens(images).importance, atol=0.02, rtol=0.1)
