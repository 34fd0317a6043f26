"""Heads and segmenters: shapes, where gradients go, which maps are read, and heads against their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluate.segmenters import swin, vit
from mst.errors import UsageError
from mst.evaluate.common.features import feature_map
from mst.evaluate.segmentation.heads import HeadName, HeadShape, PyramidPooling, SetrHead, norm_layer, setr_ups
from mst.evaluate.segmentation.model import DeepMaps, Segmenter
from mst.model.backbone import Backbone

CLASSES = ("a", "b", "c")
CASES: list[tuple[str, HeadName, tuple[int, int], int]] = [
    ("vit", "linear", (2, 3), 0),
    ("vit", "setr-naive", (2, 3), 3),
    ("vit", "setr-pup", (16, 24), 3),
    ("vit", "upernet", (8, 12), 1),
    ("swin", "linear", (1, 2), 0),
    ("swin", "upernet", (8, 16), 1),
]


def backbone_of(name: str) -> Backbone:
    return vit() if name == "vit" else swin()


def pixels_of(name: str) -> torch.Tensor:
    size = (32, 48) if name == "vit" else (32, 64)
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "head", "size", "auxiliary"), CASES)
@pytest.mark.parametrize("frozen", [True, False])
def test_logits_and_gradients(name: str, head: HeadName, size: tuple[int, int], auxiliary: int, frozen: bool) -> None:
    backbone, images = backbone_of(name), pixels_of(name)
    segmenter = Segmenter(backbone, CLASSES, HeadShape(head, 8), frozen=frozen, seed=0).train()
    assert backbone.training != frozen
    main, *others = segmenter.all_logits(images)
    assert main.shape == (2, 3, *size)
    assert len(others) == auxiliary
    torch.stack([logits.square().mean() for logits in (main, *others)]).sum().backward()
    trained = {name for name, p in segmenter.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert any(name.startswith("backbone.model.") for name in trained) != frozen
    unused = {n for n, p in segmenter.named_parameters() if p.grad is None and not n.startswith("backbone.")}
    assert not unused
    segmenter.eval()
    with torch.no_grad():
        assert segmenter(images).shape == (2, 3, *size)


def test_weights_come_from_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        segmenter = Segmenter(vit(), CLASSES, HeadShape("setr-pup", 8), frozen=True, seed=seed)
        return nn.utils.parameters_to_vector(segmenter.head.parameters())

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_setr_reads_the_depths_of_mmsegmentation() -> None:
    assert DeepMaps(24).depths == (10, 15, 20)
    assert DeepMaps(12).depths == (5, 8, 10)
    backbone, images = vit(depth=4), pixels_of("vit")
    maps = DeepMaps(4).train().read(backbone, images)
    after = backbone.intermediate(images, 4)
    for found, depth in zip(maps, (2, 2, 3, 4), strict=True):
        expected = after[depth - 1].patches.transpose(1, 2).unflatten(2, after[0].grid)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(DeepMaps(4).eval().read(backbone, images)[0], feature_map(backbone, images))


def test_setr_shapes_are_the_published_ones_at_16_px() -> None:
    assert setr_ups("setr-naive", 16, auxiliary=False) == setr_ups("setr-naive", 16, auxiliary=True) == (1, (1,))
    assert setr_ups("setr-pup", 16, auxiliary=False) == (3, (1, 2, 2, 2))  # and twice more after the classifier
    assert setr_ups("setr-pup", 16, auxiliary=True) == (3, (1, 4))
    assert setr_ups("setr-pup", 8, auxiliary=False) == (3, (1, 2, 2))
    assert setr_ups("setr-pup", 2, auxiliary=False) == (3, (1,))


def test_enlarging_the_logits_is_enlarging_before_the_classifier() -> None:
    head = SetrHead(6, 3, HeadShape("setr-pup", 8), kernel=3, ups=(1, 2)).eval()
    x = torch.randn(1, 6, 3, 4)
    y = head.blocks[0](x)
    y = head.blocks[1](F.interpolate(y, scale_factor=2, mode="bilinear"))
    published = head.classify(F.interpolate(y, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(F.interpolate(head(x), scale_factor=2, mode="bilinear"), published)


def test_pyramid_pooling_by_hand() -> None:
    pooling = PyramidPooling(4, HeadShape("upernet", 2)).eval()
    x = torch.randn(1, 4, 6, 6)
    parts = [x]
    for branch, cells in zip(pooling.branches, (1, 2, 3, 6), strict=True):
        side = 6 // cells
        means = torch.stack([
            x[..., side * i : side * (i + 1), side * j : side * (j + 1)].mean((2, 3))
            for i in range(cells)
            for j in range(cells)
        ], -1)  # fmt: skip
        parts.append(F.interpolate(branch(means.unflatten(2, (cells, cells))), (6, 6), mode="bilinear"))
    torch.testing.assert_close(pooling(x), pooling.fuse(torch.cat(parts, 1)))


def test_norms() -> None:
    assert isinstance(norm_layer("batch", 8), nn.BatchNorm2d)
    for channels, groups in ((512, 32), (48, 8), (8, 2), (6, 1), (9, 1)):
        group = norm_layer("group", channels)
        assert isinstance(group, nn.GroupNorm)
        assert group.num_groups == groups
    one = Segmenter(vit(), CLASSES, HeadShape("upernet", 8, "group"), frozen=True, seed=0).train()
    assert torch.isfinite(one.all_logits(pixels_of("vit")[:1])[0]).all()


def test_heads_and_backbones_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="use --head upernet"):
        Segmenter(swin(), CLASSES, HeadShape("setr-pup", 8), frozen=True, seed=0)
    with pytest.raises(UsageError, match="--head upernet needs patches of 4, 8, 16 or 32 px"):
        Segmenter(vit(patch_size=14), CLASSES, HeadShape("upernet", 8), frozen=True, seed=0)
    with pytest.raises(UsageError, match="--channels 0"):
        HeadShape("upernet", 0)
