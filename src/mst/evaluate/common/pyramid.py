"""Feature pyramids at strides 4, 8, 16, 32 (and 64, pooled) for detection, from any backbone of this package.

Source: ViTDet (Li et al. 2022, section 3: the simple feature pyramid, all levels from the last map) for flat
transformers; FPN (Lin et al. 2017) over the four stages of a Swin, each through a norm of its own (Liu et al. 2021).
Differs from ViTDet: the last map is taken after the backbone's final norm, and attention stays global.
Letters: B images, C channels, H W pixels, D embedding size, F pyramid channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mst.errors import UsageError
from mst.evaluate.common.features import feature_map
from mst.model.backbone import Backbone
from mst.model.families.swin import SwinBackbone

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the levels "0" to "3"; the level "pool" has 64."""


class Pyramid(nn.Module):
    """A backbone and its pyramid; a frozen backbone stays in evaluation mode and gets no gradient.

    Attributes:
        out_channels: F, as torchvision's detectors ask for.
    """

    def __init__(self, backbone: Backbone, *, channels: int, frozen: bool, compute: torch.dtype) -> None:
        """Put a pyramid of `channels` on a backbone; both compute in `compute`, the levels are float32.

        Raises:
            UsageError: patches that the strides do not fit.
        """
        super().__init__()
        if backbone.patch_size not in STRIDES or (isinstance(backbone, SwinBackbone) and backbone.patch_size != 32):
            raise UsageError(
                f"{backbone.spec.name} has tokens of {backbone.patch_size} px: detection needs patches of 4, 8, 16 or "
                "32 px (a Swin of 32)"
            )
        self.backbone = backbone
        self.out_channels = channels
        self.frozen = frozen
        self.compute = compute
        self.backbone.requires_grad_(not frozen)
        self.backbone.mask_token.requires_grad_(False)
        levels = StageLevels if isinstance(backbone, SwinBackbone) else SimpleLevels
        self.levels = levels(backbone, channels)
        self.pool = LastLevelMaxPool()

    def train(self, mode: bool = True) -> Pyramid:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels [B, F, H/stride, W/stride], float32, of normalised images [B, C, H, W]."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.compute == torch.bfloat16):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                maps = self.levels.maps(self.backbone, images)
            levels = [level.float() for level in self.levels(maps)]
        levels, names = self.pool(levels, levels, [str(index) for index in range(len(levels))])
        return OrderedDict(zip(names, levels, strict=True))


class SimpleLevels(nn.Module):
    """ViTDet's simple feature pyramid: every level from the last map alone."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        doublings = [round(math.log2(backbone.patch_size / stride)) for stride in STRIDES]
        self.levels = nn.ModuleList(_level(backbone.embed_dim, count, channels) for count in doublings)

    @staticmethod
    def maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Return the last map [B, D, h, w]."""
        return [feature_map(backbone, images)]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the levels [B, F, h', w']."""
        return [level(maps[0]) for level in self.levels]


class StageLevels(nn.Module):
    """FPN over the four stages of a Swin."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        widths = [backbone.embed_dim // 2**halvings for halvings in (3, 2, 1, 0)]
        self.norms = nn.ModuleList([*(LayerNorm2d(width) for width in widths[:-1]), nn.Identity()])
        self.fpn = FeaturePyramidNetwork(widths, channels)

    @staticmethod
    def maps(backbone: Any, images: Tensor) -> list[Tensor]:
        """Return the stages' maps [B, D', h', w']."""
        stages: list[Tensor] = backbone.stages(images)
        return stages

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the levels [B, F, h', w']."""
        normed = [norm(stage) for norm, stage in zip(self.norms, maps, strict=True)]
        levels = self.fpn(OrderedDict((str(index), stage) for index, stage in enumerate(normed)))
        return list(levels.values())


def _level(width: int, doublings: int, channels: int) -> nn.Sequential:
    """Return the layers that make a level of the last map [B, D, h, w], its grid 2**doublings times as fine.

    Source: ViTDet, section 3.
    """
    layers: list[nn.Module] = []
    for index in range(doublings):
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
        if index + 1 < doublings:
            layers += [LayerNorm2d(width), nn.GELU()]
    if doublings < 0:
        layers.append(nn.MaxPool2d(2**-doublings))
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
