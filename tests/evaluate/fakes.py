"""A backbone small enough to check by hand, and small labelled sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.model.tokens import Tokens


@dataclass(frozen=True)
class FakeSpec:
    image_size: tuple[int, int] = (8, 8)
    channels: int = 3
    name: str = "vit_tiny_patch16_224"
    patch_size: int = 4
    embed_dim: int = 3
    num_heads: int = 1
    depth: int = 2
    metadata: dict[str, Any] = field(default_factory=dict)


class FakeBackbone(nn.Module):
    """Patch tokens are the mean colour of each 4x4 patch; CLS is their mean. Refuses to work in training mode."""

    patch_size, embed_dim = 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.spec = FakeSpec()
        self.scale = nn.Parameter(torch.ones(3))
        self.drop = nn.Dropout(0.5)
        self.metadata: dict[str, Any] = {}
        self.batches: list[int] = []

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        assert not self.training
        assert not self.drop.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        maps = nn.functional.avg_pool2d(images, self.patch_size) * self.scale[:, None, None]  # [B,3,h,w]
        patches = self.drop(maps.flatten(2).transpose(1, 2))
        return Tokens(patches.mean(1), patches, (maps.shape[2], maps.shape[3]), None)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images).cls

    def intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        return [self.tokens(images)] * min(layers, self.spec.depth)


def colour_images(count: int, classes: int, *, size: int = 8, seed: int = 0) -> tuple[list[Tensor], list[int]]:
    """Noisy images whose mean colour is their class."""
    draw = torch.Generator().manual_seed(seed)
    labels = [index % classes for index in range(count)]
    images = []
    for label in labels:
        base = 60 + 120 * torch.tensor([label & 1, label >> 1 & 1, label >> 2 & 1])[:, None, None]
        images.append((base + torch.randint(-40, 41, (3, size, size), generator=draw)).to(torch.uint8))
    return images, labels


def colour_sets(train: int = 40, val: int = 16, classes: int = 4) -> LabelledSets:
    names = tuple(f"class{index}" for index in range(classes))
    return LabelledSets(
        names,
        ImageSet.from_tensors(*colour_images(train, classes, seed=1)),
        ImageSet.from_tensors(*colour_images(val, classes, seed=2)),
    )
