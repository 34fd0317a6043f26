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
from mst.model.attention import attend, choose_kernel
from mst.model.backbone import BackboneSpec
from mst.model.block import is_standard, run_block, run_cls_block
from mst.model.sequence import Ropes, SequenceBackbone
from mst.model.tokens import Summary


class VitBackbone(SequenceBackbone):
    """A `VisionTransformer` with standard pre-norm blocks and a plain patch embedding, with or without registers."""

    def __init__(self, spec: BackboneSpec, model: VisionTransformer) -> None:
        block = model.blocks[-1]
        if type(block) is not Block or type(block.attn) is not Attention or type(model.patch_embed) is not PatchEmbed:
            raise UsageError(f"{spec.name} has blocks or a stem that this package cannot read: use a plain ViT or DeiT")
        super().__init__(spec, model, embed_dim=model.embed_dim, mask_dim=model.embed_dim)
        self.standard = all(is_standard(block) for block in model.blocks)
        pools_cls = type(model) is VisionTransformer and model.global_pool == "token" and model.has_class_token
        self.reads_only_cls = self.standard and pools_cls and model.attn_pool is None

    def summary(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Summary:
        """See `Backbone.summary`; the last block is computed for the CLS token only, where that is the feature."""
        if not self.reads_only_cls:
            return super().summary(images, mask, importance=importance)
        grid = self.grid(images)
        x, ropes = self._embed(images, mask)  # [B, T, D]
        choose_kernel(self.model.blocks, x)
        *blocks, last = self.model.blocks
        for block, rope in zip(blocks, ropes, strict=False):
            x = self._block(block, x, rope)
        cls, received = run_cls_block(last, x, prefix=self.model.num_prefix_tokens, importance=importance)  # [B, 1, D]
        return Summary(self.model.forward_head(self.model.norm(cls), pre_logits=True), grid, received)

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        x = self.model._pos_embed(self._patches(images, mask))  # [B, T, D]
        return self.model.norm_pre(x), [None] * len(self.model.blocks)

    def _block(self, block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
        if self.standard and not block.attn.fused_attn:
            return run_block(block, x)
        out: Tensor = block(x)
        return out

    def _block_with_importance(self, block: Any, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        prefix, has_cls = self.model.num_prefix_tokens, self.model.has_class_token
        y, importance = attend(block.attn, block.norm1(x), rope, prefix=prefix, has_cls=has_cls)
        x = x + block.drop_path1(block.ls1(y))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), importance
