"""A backbone with a segmentation head: images in, logits out; and which of the backbone's maps each head takes.

Source: mmsegmentation's configurations for the depths of SETR's auxiliary heads (layers 10, 15 and 20 of 24) and the
weight 0.4 of auxiliary losses. UPerNet works on the stages of a Swin, each through a norm of its own (Liu et al.
2021), or on ViTDet's simple feature pyramid (Li et al. 2022) of a flat transformer.
Letters: B images, C channels, H W pixels, K classes, h w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from mst.errors import UsageError
from mst.evaluate.common.features import device_of, feature_map
from mst.evaluate.common.pyramid import STRIDES, SimpleLevels, StageLevels
from mst.evaluate.segmentation.heads import HeadShape, LinearHead, SetrHeads, UperHead
from mst.model.backbone import Backbone, seeded
from mst.model.families.swin import SwinBackbone

AUXILIARY_DEPTHS = (10 / 24, 15 / 24, 20 / 24)
"""Shares of the blocks after which SETR's auxiliary heads look."""


class LastMap(nn.Module):
    """The final patch tokens, and nothing else."""

    def read(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Return one map [B, D, h, w]."""
        return [feature_map(backbone, images)]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps as they are."""
        return maps


class DeepMaps(LastMap):
    """The maps after the blocks that SETR's heads look at; in evaluation mode only the last one."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.depths = tuple(max(1, round(share * blocks)) for share in AUXILIARY_DEPTHS)

    def read(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Return maps [B, D, h, w], the final one last."""
        if not self.training:
            return super().read(backbone, images)
        first = min(self.depths)
        found = backbone.intermediate(images, self.blocks - first + 1)
        chosen = [found[depth - first] for depth in (*self.depths, self.blocks)]
        return [tokens.patches.transpose(1, 2).reshape(len(images), -1, *tokens.grid) for tokens in chosen]


class StageMaps(nn.Module):
    """The stages of a Swin, all but the last through a norm of their own (the last has the backbone's)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([*(LayerNorm2d(width) for width in widths[:-1]), nn.Identity()])

    def read(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """Return four maps [B, D', h', w'] at strides 4, 8, 16 and 32."""
        return StageLevels.maps(backbone, images)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the normed maps."""
        return [norm(stage) for norm, stage in zip(self.norms, maps, strict=True)]


class PyramidMaps(LastMap):
    """ViTDet's simple feature pyramid over the final patch tokens."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.levels = SimpleLevels(backbone, channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return four maps [B, F, h', w'] at strides 4, 8, 16 and 32."""
        levels: list[Tensor] = self.levels(maps)
        return levels


class Segmenter(nn.Module):
    """A backbone and a head. A frozen backbone stays in evaluation mode and is part of no gradient.

    Attributes:
        shape: which head.
        classes: their names; class number = position.
        frozen: whether the backbone is left as it is.
        backbone: not copied; where it is trained, its mask token is not.
        maps: what the head sees of it, and the trained layers between them.
        head: maps to logits.
    """

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], shape: HeadShape, *, frozen: bool, seed: int
    ) -> None:
        """Put a head with new weights, drawn from `seed`, on a backbone.

        Raises:
            UsageError: the head does not go with this backbone.
        """
        super().__init__()
        self.shape, self.classes, self.frozen = shape, tuple(classes), frozen
        self.backbone = backbone
        with seeded(seed):
            self.maps, self.head = _parts(backbone, len(classes), shape)
        if not frozen:
            backbone.mask_token.requires_grad_(False)  # only masked images show it
        self.to(device_of(backbone))

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits [B, K, h', w'] of normalised images [B, C, H, W]; whoever asks enlarges them."""
        logits: Tensor = self.head(self._maps(images))
        return logits.float()

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of the head, then those of the auxiliary heads, for training."""
        maps = self._maps(images)
        found = [self.head(maps)]
        if not isinstance(self.head, LinearHead):
            found += self.head.auxiliary_logits(maps)
        return [logits.float() for logits in found]

    def _maps(self, images: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            read: list[Tensor] = self.maps.read(self.backbone, images)
        maps: list[Tensor] = self.maps(read)
        return maps


def _parts(backbone: Backbone, num_classes: int, shape: HeadShape) -> tuple[Any, Any]:
    """Return the module that chooses the maps and the head over them."""
    swin = isinstance(backbone, SwinBackbone)
    width, patch = backbone.embed_dim, backbone.patch_size
    if shape.head == "linear":
        return LastMap(), LinearHead(width, num_classes)
    if shape.head == "upernet":
        if patch not in STRIDES or (swin and patch != STRIDES[-1]):
            raise UsageError(
                f"{backbone.spec.name} has tokens of {patch} px: --head upernet needs patches of 4, 8, 16 or 32 px "
                "(a Swin of 32)"
            )
        if swin:
            widths = [width // 2**halvings for halvings in (3, 2, 1, 0)]
            return StageMaps(widths), UperHead(widths, num_classes, shape)
        return PyramidMaps(backbone, shape.channels), UperHead([shape.channels] * 4, num_classes, shape)
    if swin:
        raise UsageError(f"--head {shape.head} is for flat transformers: use --head upernet with {backbone.spec.name}")
    maps = DeepMaps(len(backbone.model.blocks))
    return maps, SetrHeads(width, num_classes, shape, patch_size=patch, auxiliary=len(maps.depths))
