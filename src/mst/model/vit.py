"""Adapter over timm's `VisionTransformer` (ViT, DeiT, DeiT-III, CLIP, SigLIP, DINOv2, AugReg), any image size.

Source: Dosovitskiy et al. 2021, Touvron et al. 2021. Position embeddings are resampled to the image's grid as timm
does it (antialiased bicubic, differentiable). Hidden patches get the mask token before the position embedding.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mst.errors import UsageError
from mst.model.attention import attend
from mst.model.backbone import BackboneSpec
from mst.model.sequence import Ropes, SequenceBackbone


class VitBackbone(SequenceBackbone):
    """A `VisionTransformer` with standard pre-norm blocks and a plain patch embedding, with or without registers."""

    def __init__(self, spec: BackboneSpec, model: VisionTransformer) -> None:
        block = model.blocks[-1]
        if type(block) is not Block or type(block.attn) is not Attention or type(model.patch_embed) is not PatchEmbed:
            raise UsageError(f"{spec.name} has blocks or a stem that this package cannot read: use a plain ViT or DeiT")
        super().__init__(spec, model, embed_dim=model.embed_dim, mask_dim=model.embed_dim)

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        x = self.model._pos_embed(self._patches(images, mask))  # [B, T, D]
        return self.model.norm_pre(x), [None] * len(self.model.blocks)

    def _block(self, block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
        out: Tensor = block(x)
        return out

    def _block_with_importance(self, block: Any, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        prefix, has_cls = self.model.num_prefix_tokens, self.model.has_class_token
        y, importance = attend(block.attn, block.norm1(x), rope, prefix=prefix, has_cls=has_cls)
        x = x + block.drop_path1(block.ls1(y))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), importance
