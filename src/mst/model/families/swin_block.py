"""timm's blocks of Swin by the windows of `windows`, which keep little for the backward pass on a CPU.

As in `mst.model.block`, a block keeps timm's weights and names and gets another class, whose `forward` is the
computation below. Source: Liu et al. 2021 (Swin), 2022 (Swin V2).

Letters (docs/algorithm.md): B images, D embedding size; here also h' w' = the map of a stage.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from mst.model.block import add_branch, drop_rate, has_standard_parts
from mst.model.families.windows import Windows, attend_in_windows, cut, logit_scale, position_bias, qkv_bias
from mst.model.lean import attention, gelu_linear, has_values, linear, norm_linear, product


class SwinBlock(SwinTransformerBlock):
    """timm's block of Swin.

    Attributes:
        shifted: whether its windows are shifted where the map is longer than one.
        lean: whether the lean computation is what the block does.
    """

    shifted: bool
    lean: bool

    def forward(self, x: Tensor, *, importance: bool = False) -> Any:
        """Return a map [B, h', w', D] after the block; with `importance`, also that of its places [B, h'*w']."""
        windows = _windows(self, x)
        if _is_lean(self, x, importance):
            x = add_branch(x, lambda x: _attended(self, x, windows, self.norm1), x, drop_rate(self.drop_path1))
            return add_branch(x, lambda x: _mlp(self, x, self.norm2), x, drop_rate(self.drop_path2))
        y, received = attend_in_windows(self.attn, self.norm1(x), windows, importance)
        x = x + self.drop_path1(y)
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return (x, received) if importance else x


class SwinV2Block(SwinTransformerV2Block):
    """timm's block of Swin V2 (norms after the branches); see `SwinBlock`."""

    shifted: bool
    lean: bool

    def forward(self, x: Tensor, *, importance: bool = False) -> Any:
        """As `SwinBlock.forward`."""
        windows = _windows(self, x)
        if _is_lean(self, x, importance):
            x = add_branch(x, lambda x: self.norm1(_attended(self, x, windows)), x, drop_rate(self.drop_path1))
            return add_branch(x, lambda x: self.norm2(_mlp(self, x)), x, drop_rate(self.drop_path2))
        y, received = attend_in_windows(self.attn, x, windows, importance)
        x = x + self.drop_path1(self.norm1(y))
        x = x + self.drop_path2(self.norm2(self.mlp(x)))
        return (x, received) if importance else x


def read_stages(stages: Iterable[Any]) -> None:
    """Give the blocks of timm's stages the classes above."""
    for stage in stages:
        for index, block in enumerate(stage.blocks):
            block.__class__ = _BLOCKS[type(block)]
            block.shifted, block.lean = index % 2 == 1, has_standard_parts(block)


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    SwinTransformerBlock: SwinBlock,
    SwinTransformerV2Block: SwinV2Block,
}


def _windows(block: Any, x: Tensor) -> Windows:
    """Return how the block cuts a map [B, h', w', D]."""
    size, make = (x.shape[1], x.shape[2]), _known_cut if has_values(x) else cut
    return make(size, block.window_size, shifted=block.shifted, device=x.device)


@lru_cache(maxsize=32)
def _known_cut(size: tuple[int, int], window: tuple[int, int], *, shifted: bool, device: torch.device) -> Windows:
    """Return `cut` of the same, kept for the next block and step: it is some thirty small operations."""
    with torch.inference_mode(False):
        return cut(size, window, shifted=shifted, device=device)


def _is_lean(block: Any, x: Tensor, importance: bool) -> bool:
    return bool(block.lean) and not importance and x.device.type == "cpu"


def _attended(block: Any, x: Tensor, windows: Windows, norm: Any = None) -> Tensor:
    """Return the attention of a standard block to a map x [B, h', w', D] through its norm, if any."""
    attn, shape = block.attn, x.shape
    tiled = windows.padding is None
    rows = windows.split(x) if tiled else x  # [B*n, M, D]; with padding the map, so that it takes part in no product
    qkv = _product(rows, norm, attn.qkv.weight, qkv_bias(attn))  # [..., 3 * D]
    scale = logit_scale(attn) if hasattr(attn, "logit_scale") else attn.scale
    out = attention(
        qkv if tiled else windows.split(qkv),
        attn.num_heads,
        scale,
        position_bias(attn, windows.sides),
        windows.blocked(),
    )  # [B*n, M, D]
    if tiled:
        return windows.join(linear(out, attn.proj)).view(shape)
    return linear(windows.join(out).view(shape), attn.proj)


def _mlp(block: Any, x: Tensor, norm: Any = None) -> Tensor:
    """Return the MLP of a standard block of x [B, h', w', D] through its norm, if any."""
    return gelu_linear(_product(x, norm, block.mlp.fc1.weight, block.mlp.fc1.bias), block.mlp.fc2)


def _product(x: Tensor, norm: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight, bias) if norm is None else norm_linear(x, norm, weight, bias)
