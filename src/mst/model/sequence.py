"""What timm's flat transformers (ViT, EVA) share: one sequence of prefix and patch tokens through equal blocks.

Letters (docs/algorithm.md): B images, N = h*w patch tokens, T = prefix + N, D embedding size.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mst.model.attention import choose_kernel
from mst.model.backbone import Backbone
from mst.model.tokens import Tokens

Ropes = list[Tensor | None]


class SequenceBackbone(Backbone):
    """Tokens of a network with `patch_embed`, `blocks`, `norm` and `forward_head`.

    The global feature is timm's own pooling (CLS token, mean, or attention pooling, as the model's name says). With a
    CLS token, importance is the last block's CLS query over the patch keys, averaged over heads. Without one
    (`*_gap_*`, SigLIP and the like) it is the attention each patch receives in the last block, averaged over heads
    and over the patch queries.
    """

    def tokens(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = True) -> Tokens:
        """See `Backbone.tokens`."""
        grid = self.grid(images)
        x, ropes = self._embed(images, mask)  # [B, T, D]
        choose_kernel(self.model.blocks, x)
        *blocks, last = self.model.blocks
        for block, rope in zip(blocks, ropes, strict=False):
            x = self._block(block, x, rope)
        received = None
        if importance:
            x, received = self._block_with_importance(last, x, ropes[-1])  # [B, T, D], [B, N]
        else:
            x = self._block(last, x, ropes[-1])
        return self._read(x, grid, received)

    def intermediate(self, images: Tensor, layers: int) -> list[Tokens]:
        """See `Backbone.intermediate`."""
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

    @abstractmethod
    def _embed(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Ropes]:
        """Return the input of the first block [B, T, D] and each block's rotary embedding (or None)."""

    @abstractmethod
    def _block(self, block: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
        """Run one block on [B, T, D]."""

    @abstractmethod
    def _block_with_importance(self, block: nn.Module, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run one block on [B, T, D] and return the importance [B, N] its attention gives."""

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
        return Tokens(self.model.forward_head(x, pre_logits=True), patches, grid, importance)
