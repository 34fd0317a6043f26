"""Adapter over timm's `VisionTransformer` (ViT, DeiT, DeiT-III, CLIP, SigLIP, DINOv2, AugReg), any image size.

Source: Dosovitskiy et al. 2021, Touvron et al. 2021. Position embeddings are resampled to the image's grid as timm
does it (antialiased bicubic, differentiable). Hidden patches get the mask token before the position embedding.
"""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mst.errors import UsageError
from mst.model.backbone import BackboneSpec
from mst.model.block import read_blocks
from mst.model.families.sequence import Ropes, SequenceBackbone


class VitBackbone(SequenceBackbone):
    """A `VisionTransformer` with standard pre-norm blocks and a plain patch embedding, with or without registers."""

    def __init__(self, spec: BackboneSpec, model: VisionTransformer) -> None:
        block = model.blocks[-1]
        if type(block) is not Block or type(block.attn) is not Attention or type(model.patch_embed) is not PatchEmbed:
            raise UsageError(f"{spec.name} has blocks or a stem that this package cannot read: use a plain ViT or DeiT")
        super().__init__(spec, model, embed_dim=model.embed_dim, mask_dim=model.embed_dim)
        read_blocks(model.blocks)
        pools_cls = type(model) is VisionTransformer and model.global_pool == "token" and model.has_class_token
        lean = bool(model.blocks[-1].lean)
        self.reads_only_cls = lean and pools_cls and model.attn_pool is None
        self.has_cls = bool(model.has_class_token)

    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        x = self.model._pos_embed(self._patches(images, mask))  # [B, T, D]
        return self.model.norm_pre(x), [None] * len(self.model.blocks)
