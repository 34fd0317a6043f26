"""Adapter over timm's `SwinTransformer` and `SwinTransformerV2`: windows in four stages, one token per 32 x 32 px.

Source: Liu et al. 2021 (Swin), 2022 (Swin V2); masking at the last stage's cells follows Xie et al. 2022 (SimMIM).
Differs from timm where a stage's map is no multiple of the window (see `windows`), so that a small crop is not diluted
by zeros. At `spec.image_size` nothing is padded (see `window_side`) and the features are timm's.

Letters (docs/algorithm.md): B images, N = h*w tokens, D embedding size.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor

from mst.errors import UsageError
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.families.swin_block import read_stages
from mst.model.tokens import Tokens

CELL = 8  # patch embeddings per side of a token of the last stage: three mergings by two


class SwinBackbone(Backbone):
    """A Swin of four stages. The global feature is the mean of the patch tokens.

    Importance is the attention each token receives in the last block of the last stage, averaged over heads and over
    the queries of the image; a query in another window gives nothing, padding neither gives nor takes. With one
    window (224 px, window 7) it is the mean over that window's queries. Rows sum to one.
    """

    ANY_SIZE: ClassVar[dict[str, Any]] = {"strict_img_size": False}
    SAME_AT_ANY_SIZE = False  # timm pads after the shift, and lets the padding take part in attention

    def __init__(self, spec: BackboneSpec, model: SwinTransformer | SwinTransformerV2) -> None:
        if len(model.layers) != 4:
            raise UsageError(f"{spec.name} has {len(model.layers)} stages: use a Swin of four stages")
        super().__init__(spec, model, embed_dim=model.num_features, mask_dim=model.embed_dim)
        read_stages(model.layers)

    @classmethod
    def timm_arguments(cls, spec: BackboneSpec) -> dict[str, Any]:
        """See `Backbone.timm_arguments`; the patch embedding is an eighth of a token, the window fits the image."""
        if spec.patch_size % CELL:
            raise UsageError(f"model.patch_size {spec.patch_size} is not a multiple of {CELL}, as Swin needs: use 32")
        own = re.search(r"window(?:\d+to)?(\d+)", spec.name)
        if own is None:
            raise UsageError(f"{spec.name} has windows of several sizes: use for example swin_tiny_patch4_window7_224")
        cells = tuple(side // spec.patch_size for side in spec.image_size)
        chosen = {
            "embed_dim": spec.embed_dim,
            "depths": (2, 2, spec.depth, 2) if spec.depth else None,
            "num_heads": tuple(spec.num_heads * 2**stage for stage in range(4)) if spec.num_heads else None,
        }
        return {
            **cls.common_arguments(spec),
            "patch_size": spec.patch_size // CELL,
            "window_size": tuple(window_side(side, int(own.group(1))) for side in cells),
            **{key: value for key, value in chosen.items() if value is not None},
        }

    @property
    def blocks(self) -> list[Any]:
        """See `Backbone.blocks`; of all stages."""
        return [block for stage in self.model.layers for block in stage.blocks]

    def _tokens(self, images: Tensor, mask: Tensor | None, importance: bool) -> Tokens:
        """See `Backbone.tokens`. A masked token hides its 8 x 8 patch embeddings."""
        grid = self.grid(images)
        x = self._before_last_stage(images, mask)  # [B, h, w, D]
        *blocks, last = self.model.layers[-1].blocks
        for block in blocks:
            x = block(x)
        x, received = last(x, importance=True) if importance else (last(x), None)
        return self._read(x, grid, received)

    def _intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        """See `Backbone.intermediate`; at most the blocks of the last stage, which share the final norm's width."""
        grid = self.grid(images)
        x = self._before_last_stage(images, None)  # [B, h, w, D]
        found = []
        for block in self.model.layers[-1].blocks:
            x = block(x)
            found.append(self._read(x, grid, None))
        return found[-layers:]

    def _stages(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.stages`: 8, 4, 2 and 1 cells per token; the last through the norm."""
        self.grid(images)
        x: Tensor = self.model.patch_embed(images)  # [B, 8h, 8w, D/8]
        maps = []
        for stage in self.model.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
            maps.append(x)
        maps[-1] = self.model.norm(x)
        return [stage.permute(0, 3, 1, 2) for stage in maps]

    def _before_last_stage(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Return the input of the last stage's first block [B, h, w, D]."""
        x: Tensor = self.model.patch_embed(images)  # [B, 8h, 8w, D/8]
        if mask is not None:
            height, width = x.shape[1] // CELL, x.shape[2] // CELL
            hidden = mask.view(-1, height, 1, width, 1).expand(-1, -1, CELL, -1, CELL)  # [B, h, 8, w, 8]
            x = torch.where(hidden.reshape(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        *stages, last = self.model.layers
        for stage in stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
        merged: Tensor = last.downsample(x)
        return merged

    def _read(self, x: Tensor, grid: tuple[int, int], importance: Tensor | None) -> Tokens:
        x = self.model.norm(x)  # [B, h, w, D]
        return Tokens(self.model.forward_head(x, pre_logits=True), x.flatten(1, 2), grid, importance)


def window_side(cells: int, own: int) -> int:
    """Return the window side nearest to the name's `own` that tiles every stage of an image `cells` tokens long.

    The stages are `8, 4, 2, 1` times `cells` long; a stage shorter than the window is one window. 224 px (7 cells)
    keeps 7; 128 px (4 cells) takes 8 instead of 7.
    """
    stages = [cells * 2**k for k in range(4)]
    fitting = [side for side in range(1, 2 * own + cells) if all(s <= side or s % side == 0 for s in stages)]
    return min(fitting, key=lambda side: (abs(side - own), side))
