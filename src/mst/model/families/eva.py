"""Adapter over timm's `Eva`: transformers with rotary position embedding (DINOv3-style, EVA-02, RoPE-ViT, PE).

Source: Heo et al. 2024 (rotary embedding for images), Siméoni et al. 2025 (DINOv3), Fang et al. 2023 (EVA-02). Hidden
patches get the mask token before any absolute position embedding; the rotation tells the blocks where they are.
"""

from __future__ import annotations

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import init_random_2d_freqs
from timm.models.eva import Eva, EvaBlock
from torch import Tensor

from mst.errors import UsageError
from mst.model.backbone import BackboneSpec, LinearInit, Positions, seeded
from mst.model.block import read_blocks
from mst.model.families.sequence import Ropes, SequenceBackbone


class EvaBackbone(SequenceBackbone):
    """An `Eva` with pre-norm blocks and a plain patch embedding; the rotation is made for each image size."""

    def __init__(self, spec: BackboneSpec, model: Eva) -> None:
        if type(model.blocks[-1]) is not EvaBlock or type(model.patch_embed) is not PatchEmbed:
            raise UsageError(f"{spec.name} has blocks that this package cannot read: use for example vit_*_dinov3")
        super().__init__(spec, model, embed_dim=model.embed_dim, mask_dim=model.embed_dim)
        read_blocks(model.blocks)
        self.has_cls = model.cls_token is not None

    def init_weights(
        self, seed: int = 0, linear: LinearInit = "trunc_normal", positions: Positions = "learned"
    ) -> None:
        """See `Backbone.init_weights`; learned rotations start in random directions, which timm draws only once."""
        super().init_weights(seed, linear, positions)
        if self.model.rope_mixed:
            rope = self.model.rope
            depth, heads, half = rope.freqs.shape[1:]  # freqs [2, depth, A, d/2]
            with seeded(seed), torch.no_grad():
                rope.freqs.copy_(init_random_2d_freqs(2 * half, depth, heads, rope.temperature))

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        x, rope = self.model._pos_embed(self._patches(images, mask))  # [B, T, D]
        count = len(self.model.blocks)
        per_block = self.model.rope_mixed and rope is not None  # learned rotations, one per block
        return self.model.norm_pre(x), list(rope) if per_block else [rope] * count
