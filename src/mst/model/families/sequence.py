"""What timm's flat transformers (ViT, EVA) share: one sequence of prefix and patch tokens through equal blocks.

Letters (docs/algorithm.md): B images, N = h*w patch tokens, T = prefix + N, D embedding size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from mst.model.attention import choose_kernel
from mst.model.backbone import Backbone
from mst.model.block import Read, Reading
from mst.model.families.positions import fix_positions
from mst.model.tokens import Summary, Tokens

Ropes = list[Tensor | None]


class SequenceBackbone(Backbone):
    """Tokens of a network with `patch_embed`, `blocks`, `norm` and `forward_head`.

    The global feature is timm's own pooling (CLS token, mean, or attention pooling, as the model's name says). With a
    CLS token, importance is the last block's CLS query over the patch keys, averaged over heads. Without one
    (`*_gap_*`, SigLIP and the like) it is the attention each patch receives in the last block, averaged over heads
    and over the patch queries.
    """

    has_cls: bool
    reads_only_cls = False
    """Whether `_summary` computes the last block for the CLS token only."""

    @property
    def blocks(self) -> list[Any]:
        """See `Backbone.blocks`."""
        return list(self.model.blocks)

    def _tokens(self, images: Tensor, mask: Tensor | None, importance: bool) -> Tokens:
        grid = self.grid(images)
        x, received = self._run(images, mask, self._reading(importance=importance, cls_only=False))
        return self._read(x, grid, received)

    def _summary(self, images: Tensor, mask: Tensor | None, importance: bool) -> Summary:
        if not self.reads_only_cls:
            return super()._summary(images, mask, importance)
        grid = self.grid(images)
        cls, received = self._run(images, mask, self._reading(importance=importance, cls_only=True))  # [B, 1, D]
        return Summary(self.model.forward_head(self.model.norm(cls), pre_logits=True), grid, received)

    def _intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        grid = self.grid(images)
        x, ropes = self._embed(images, None)
        choose_kernel(self.model.blocks, x)
        first = len(self.model.blocks) - layers
        found = []
        for index, (block, rope) in enumerate(zip(self.model.blocks, ropes, strict=True)):
            x = self._block(block, x, rope)
            if index >= first:
                found.append(self._read(x, grid, None))
        return found

    def _run(self, images: Tensor, mask: Tensor | None, reading: Reading) -> Read:
        """Run all blocks; the last one says what `reading` asks for."""
        x, ropes = self._embed(images, mask)  # [B, T, D]
        choose_kernel(self.model.blocks, x)
        *blocks, last = self.model.blocks
        for block, rope in zip(blocks, ropes, strict=False):
            x = self._block(block, x, rope)
        read: Read = self._block(last, x, ropes[-1], reading)
        return read

    @staticmethod
    def _block(block: Any, x: Tensor, rope: Tensor | None, reading: Reading | None = None) -> Any:
        return block(x, reading=reading) if rope is None else block(x, rope, reading=reading)

    def _fix_positions(self) -> None:
        if self.model.pos_embed is None:  # rotation alone: refused
            super()._fix_positions()
        else:
            fix_positions(self.model)

    def _reading(self, *, importance: bool, cls_only: bool) -> Reading:
        return Reading(self.model.num_prefix_tokens, self.has_cls, cls_only, importance)

    @abstractmethod
    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        """Return the input of the first block [B, T, D] and each block's rotary embedding (or None)."""

    def _patches(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Return the patch embeddings [B, h, w, D], hidden ones replaced by the mask token."""
        x: Tensor = self.model.patch_embed(images)  # [B, h, w, D]
        if mask is None:
            return x
        hidden = mask.view(*x.shape[:3], 1)  # [B, h, w, 1]
        return torch.where(hidden, self.mask_token.to(x.dtype), x)

    def _read(self, x: Tensor, grid: tuple[int, int], importance: Tensor | None) -> Tokens:
        x = self.model.norm(x)  # [B, T, D]
        patches = self.model.fc_norm(x[:, self.model.num_prefix_tokens :])  # [B, N, D]
        cls_token = x[:, 0] if self.has_cls else None  # [B, D]
        return Tokens(self.model.forward_head(x, pre_logits=True), patches, grid, importance, cls_token)
