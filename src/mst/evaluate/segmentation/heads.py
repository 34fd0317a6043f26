"""Segmentation heads, with their auxiliary heads: linear, SETR-naive, SETR-PUP and UPerNet.

Source: SETR (Zheng et al. 2021, section 3.2; widths and auxiliary heads as in mmsegmentation's
`setr_vit-l_naive|pup` configurations); UPerNet (Xiao et al. 2018: pyramid pooling of bins 1, 2, 3 and 6 on the last
level, FPN, all levels fused; widths as in mmsegmentation's `upernet_swin`). Differs: SETR's layers are taken through
the backbone's final norm instead of a norm of the head's own, and PUP doubles the map as often as a patch has factors
of two (four times at 16 px).
Letters: B images, D features, F channels of the head, K classes, h w cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.runtime.limits import check_numbers

HeadName = Literal["linear", "setr-naive", "setr-pup", "upernet"]
NormName = Literal["batch", "group"]

BINS = (1, 2, 3, 6)
"""Cells per side of the pooled maps of UPerNet."""
GROUPS, GROUP_SIZE = 32, 4
"""Most groups of a group norm, and fewest channels of a group: in a pooled map of one cell, a group's statistics are
taken over its channels alone."""


@dataclass(frozen=True)
class HeadShape:
    """Which head, and its sizes.

    Attributes:
        head: linear, setr-naive or setr-pup for flat transformers; upernet for all.
        channels: of the head's layers; the published ones have 256 (SETR) and 512 (UPerNet).
        norm: batch, or group for microbatches of so few images that batch statistics are useless.
    """

    head: HeadName = "linear"
    channels: int = 256
    norm: NormName = "batch"

    def __post_init__(self) -> None:
        check_numbers(self, "channels", least=1)


def norm_layer(name: NormName, channels: int) -> nn.Module:
    """Return a norm over maps [B, F, h, w]."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    groups = math.gcd(GROUPS, channels)
    while groups > 1 and channels < GROUP_SIZE * groups:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def conv_block(inputs: int, outputs: int, kernel: int, norm: NormName) -> nn.Sequential:
    """Return convolution, norm, ReLU; the size stays."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, norm_layer(norm, outputs), nn.ReLU(inplace=True))


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps [B, F, h, w] bilinearly at another size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, (size[0], size[1]), mode="bilinear", align_corners=False)


class LinearHead(nn.Module):
    """Standardised features, one 1x1 convolution, in float32."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm2d(width, affine=False)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, K, h, w] of the last map [B, D, h, w]."""
        with torch.autocast(maps[-1].device.type, enabled=False):
            logits: Tensor = self.classify(self.standardise(maps[-1].float()))
        return logits


class SetrHead(nn.Module):
    """Convolutions with bilinear upsampling between them, and a 1x1 convolution to the classes.

    The published heads enlarge once more before the last convolution. A 1x1 convolution commutes with enlarging, so
    enlarging its logits gives the same result with K channels to enlarge in place of F.
    """

    def __init__(self, width: int, num_classes: int, shape: HeadShape, *, kernel: int, ups: Sequence[int]) -> None:
        """Make a head whose block i works on a map enlarged by `ups[i]`."""
        super().__init__()
        widths = [width, *(shape.channels for _ in ups)]
        pairs = pairwise(widths)
        self.blocks = nn.ModuleList(conv_block(before, after, kernel, shape.norm) for before, after in pairs)
        self.ups = tuple(ups)
        self.classify = nn.Conv2d(shape.channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K, h', w'] of a map [B, D, h, w]; h' = h times all factors."""
        for block, up in zip(self.blocks, self.ups, strict=True):
            x = block(enlarge(x, (up * x.shape[-2], up * x.shape[-1])))  # [B,F,h',w']
        logits: Tensor = self.classify(x)
        return logits


def setr_ups(name: HeadName, patch_size: int, *, auxiliary: bool) -> tuple[int, tuple[int, ...]]:
    """Return the kernel size and the factor before each block: for patches of 16 px those of mmsegmentation.

    Smaller patches need fewer doublings, larger ones more.
    """
    doublings = round(math.log2(patch_size))
    if name == "setr-naive" or doublings < 2:
        return (1 if name == "setr-naive" else 3), (1,)
    if auxiliary:
        return 3, (1, 2 ** -(-doublings // 2))
    return 3, (1, *(2 for _ in range(doublings - 1)))


class SetrHeads(nn.Module):
    """The head on the last map and, for training, one on each map before it."""

    def __init__(self, width: int, num_classes: int, shape: HeadShape, *, patch_size: int, auxiliary: int) -> None:
        super().__init__()
        kernel, ups = setr_ups(shape.head, patch_size, auxiliary=False)
        self.main = SetrHead(width, num_classes, shape, kernel=kernel, ups=ups)
        kernel, ups = setr_ups(shape.head, patch_size, auxiliary=True)
        self.auxiliary = nn.ModuleList(
            SetrHead(width, num_classes, shape, kernel=kernel, ups=ups) for _ in range(auxiliary)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, K, h', w'] of the last map [B, D, h, w]."""
        logits: Tensor = self.main(maps[-1])
        return logits

    def auxiliary_logits(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of the maps before the last."""
        return [head(x) for head, x in zip(self.auxiliary, maps[:-1], strict=True)]


class PyramidPooling(nn.Module):
    """The last level beside its means over 1, 2 x 2, 3 x 3 and 6 x 6 cells (Zhao et al. 2017, PSPNet)."""

    def __init__(self, width: int, shape: HeadShape) -> None:
        super().__init__()
        self.branches = nn.ModuleList(conv_block(width, shape.channels, 1, shape.norm) for _ in BINS)
        self.fuse = conv_block(width + len(BINS) * shape.channels, shape.channels, 3, shape.norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, F, h, w] of a level [B, D, h, w]."""
        pooled = [branch(F.adaptive_avg_pool2d(x, cells)) for branch, cells in zip(self.branches, BINS, strict=True)]
        fused: Tensor = self.fuse(torch.cat([x, *(enlarge(part, x.shape[-2:]) for part in pooled)], 1))
        return fused


class UperHead(nn.Module):
    """UPerNet over levels of decreasing size, and its auxiliary head: an FCN on the last level but one."""

    def __init__(self, widths: Sequence[int], num_classes: int, shape: HeadShape) -> None:
        super().__init__()
        channels, norm = shape.channels, shape.norm
        self.pooling = PyramidPooling(widths[-1], shape)
        self.laterals = nn.ModuleList(conv_block(width, channels, 1, norm) for width in widths[:-1])
        self.smooth = nn.ModuleList(conv_block(channels, channels, 3, norm) for _ in widths[:-1])
        self.fuse = conv_block(len(widths) * channels, channels, 3, norm)
        self.drop = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = nn.Sequential(
            conv_block(widths[-2], channels, 3, norm), nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return logits [B, K, h, w] at the size of the first level."""
        sides = [lateral(level) for lateral, level in zip(self.laterals, levels[:-1], strict=True)]
        above = self.pooling(levels[-1])  # [B,F,h,w]
        found = [above]
        for side, smooth in zip(reversed(sides), reversed(self.smooth), strict=True):
            above = side + enlarge(above, side.shape[-2:])  # [B,F,2h,2w]
            found.append(smooth(above))
        size = levels[0].shape[-2:]
        logits: Tensor = self.classify(self.drop(self.fuse(torch.cat([enlarge(part, size) for part in found], 1))))
        return logits

    def auxiliary_logits(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of the last level but one."""
        return [self.auxiliary(levels[-2])]
