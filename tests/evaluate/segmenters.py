"""Tiny backbones for segmentation, and one whose tokens are single pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluate.fakes import FakeBackbone
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone


def vit(*, patch_size: int = 16, depth: int = 2) -> Backbone:
    side = 2 * patch_size
    return build_backbone(BackboneSpec("vit_tiny_patch16_224", (side, side), 3, patch_size, 32, depth, 2), seed=0)


def swin() -> Backbone:
    return build_backbone(BackboneSpec("swin_tiny_patch4_window7_224", (64, 64), 3, 32, 16, 2, 1), seed=0)


class PixelBackbone(FakeBackbone):
    """Every pixel is a token: its colour. Windows change nothing."""

    patch_size = 1


def striped(count: int, *, size: tuple[int, int] = (32, 48), void: int | None = None) -> SegmentationSet:
    """Noisy images of two halves, dark (class 0) and bright (class 1); the first rows are void."""
    draw = torch.Generator().manual_seed(count)
    images, masks = [], []
    for index in range(count):
        mask = torch.zeros(size, dtype=torch.int64)
        mask[:, 16 * (1 + index % 2) :] = 1
        noise = torch.randint(-20, 21, (3, *size), generator=draw)
        images.append((60 + 130 * mask + noise).to(torch.uint8))
        if void is not None:
            mask[:4] = void
        masks.append(mask)
    return SegmentationSet.from_tensors(images, masks)


def striped_folder(root: Path) -> Path:
    """Write five pairs as a folder, three of them for training."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    pairs = striped(5, void=7)
    for index in range(5):
        image, mask = pairs.read(index)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(root / "images" / f"{index}.png")
        Image.fromarray(mask.numpy().astype(np.uint8)).save(root / "masks" / f"{index}.png")
    (root / "train.txt").write_text("0\n1\n2\n")
    (root / "val.txt").write_text("3\n4\n")
    (root / "classes.json").write_text(json.dumps({"classes": ["dark", "bright"], "ignore_index": 7}))
    return root


def striped_data(*, void: int | None = None) -> SegmentationData:
    return SegmentationData(("dark", "bright"), striped(6, void=void), striped(3, void=void), void)


def random_image(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
