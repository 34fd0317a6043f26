"""Adapter over timm's `SwinTransformer` and `SwinTransformerV2`: windows in four stages, one token per 32 x 32 px.

Source: Liu et al. 2021 (Swin), 2022 (Swin V2); masking at the last stage's cells follows Xie et al. 2022 (SimMIM).
Differs from timm where a stage's map is no multiple of the window: padding comes before the shift and takes no part
in attention, and a map shorter than the window is not padded, so that a small crop is not diluted by zeros. At
`spec.image_size` nothing is padded (see `window_side`) and the features are timm's.

Letters (docs/algorithm.md): B images, A heads, N = h*w tokens, D embedding size; here also M = tokens of a window,
n windows per image, and h' w' = the map of a stage.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from mst.errors import UsageError
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.tokens import Tokens

CELL = 8  # patch embeddings per side of a token of the last stage: three mergings by two
MAX_LOGIT_SCALE = 100.0  # Swin V2, section 3.2: the temperature is not below 0.01
BLOCKED = -100.0  # added to scores that must not count; timm's value


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
        stages: Any = model.layers
        for stage in stages:
            for index, block in enumerate(stage.blocks):
                block.__class__ = _BLOCKS[type(block)]
                block.shifted = index % 2 == 1

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


class SwinBlock(SwinTransformerBlock):
    """timm's block of Swin, by the windows of this module.

    Attributes:
        shifted: whether its windows are shifted where the map is longer than one.
    """

    shifted: bool

    def forward(self, x: Tensor, *, importance: bool = False) -> Any:
        """Return a map [B, h', w', D'] after the block; with `importance`, also that of its places [B, h'*w']."""
        y, received = _shifted_windows(self, self.norm1(x), self.shifted, importance)
        x = x + self.drop_path1(y)
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return (x, received) if importance else x


class SwinV2Block(SwinTransformerV2Block):
    """timm's block of Swin V2 (norms after the branches), by the windows of this module; see `SwinBlock`."""

    shifted: bool

    def forward(self, x: Tensor, *, importance: bool = False) -> Any:
        """As `SwinBlock.forward`."""
        y, received = _shifted_windows(self, x, self.shifted, importance)
        x = x + self.drop_path1(self.norm1(y))
        x = x + self.drop_path2(self.norm2(self.mlp(x)))
        return (x, received) if importance else x


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    SwinTransformerBlock: SwinBlock,
    SwinTransformerV2Block: SwinV2Block,
}
"""timm's blocks keep their weights and names and get the classes above."""


def _shifted_windows(block: Any, x: Tensor, shifted: bool, importance: bool) -> tuple[Tensor, Tensor | None]:
    """Attention inside (shifted) windows of a map [B, h', w', D']; a map shorter than the window is one window."""
    height, width = x.shape[1:3]
    wh, ww = (min(side, length) for side, length in zip(block.window_size, (height, width), strict=True))
    shift = (wh // 2 if shifted and height > wh else 0, ww // 2 if shifted and width > ww else 0)
    pad_h, pad_w = -height % wh, -width % ww
    padded = (height + pad_h, width + pad_w)
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    if any(shift):
        x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    labels = None
    if any(shift) or pad_h or pad_w:
        labels = window_labels((height, width), padded, (wh, ww), shift, x.device)  # [n, M]
    windows = window_partition(x, (wh, ww)).flatten(1, 2)  # [B*n, M, D']
    windows, received = attend_in_windows(block.attn, windows, (wh, ww), labels, importance)
    if received is not None:
        received = _back(received.unsqueeze(-1), (wh, ww), padded, shift)[:, :height, :width].flatten(1)  # [B, h'*w']
        received = received / received.shape[1]
    return _back(windows, (wh, ww), padded, shift)[:, :height, :width], received


def _back(windows: Tensor, window: tuple[int, int], padded: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Put windows [B*n, M, D'] back into an unshifted map [B, h', w', D']."""
    maps: Tensor = window_reverse(windows, window, padded[0], padded[1])
    return torch.roll(maps, shifts=shift, dims=(1, 2)) if any(shift) else maps


def window_labels(
    size: tuple[int, int],
    padded: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Return a number per place of each window [n, M]: places see each other only where their numbers agree.

    Negative marks padding. A shifted map has wrapped-around rows and columns in its last windows; these are another
    piece of the image than their neighbours.
    """
    sides = []
    for length, total, step in zip(size, padded, shift, strict=True):
        place = torch.arange(total, device=device)
        wrapped = (place >= total - step).long()  # 1 where the roll brought the start of the map
        sides.append(torch.where((place + step) % total >= length, -10, wrapped))
    labels = 2 * sides[0][:, None] + sides[1][None, :]  # [h', w'] 0..3, negative where either side is padding
    windows: Tensor = window_partition(labels.clamp(min=-1)[None, :, :, None], window)  # [n, wh, ww, 1]
    return windows.flatten(1)


def attend_in_windows(
    attention: Any, x: Tensor, window: tuple[int, int], labels: Tensor | None, importance: bool
) -> tuple[Tensor, Tensor | None]:
    """Run a window attention.

    Args:
        attention: timm's `WindowAttention` of Swin or Swin V2.
        x: windows [B*n, M, D'].
        window: sides of these windows, not above the attention's own; M is their product.
        labels: from `window_labels`, or None where every place sees every other.
        importance: also read what each key receives.

    Returns:
        The new windows [B*n, M, D'], and what each key receives, summed over the queries and averaged over heads
        [B*n, M], float32, detached, zero for padding; or None.
    """
    q, k, v = _queries_keys_values(attention, x)  # each [B*n, A, M, d]
    bias = _position_bias(attention, window)  # [A, M, M]
    if labels is not None:
        bias = bias + ((labels.unsqueeze(1) != labels.unsqueeze(2)) * BLOCKED).unsqueeze(1)  # [n, A, M, M]
        bias = bias.repeat(len(x) // len(labels), 1, 1, 1)  # [B*n, A, M, M]
    received = None
    if importance:
        received = _received(q.detach(), k.detach(), bias.detach(), labels)
    weights = attention.attn_drop((q @ k.transpose(-2, -1) + bias).softmax(dim=-1))  # [B*n, A, M, M], M is small
    out = weights.type_as(v) @ v  # [B*n, A, M, d]
    return attention.proj_drop(attention.proj(out.transpose(1, 2).flatten(2))), received


def _received(q: Tensor, k: Tensor, bias: Tensor, labels: Tensor | None) -> Tensor:
    """Return what each key receives from all queries of its window, averaged over heads [B*n, M], float32."""
    with torch.autocast(q.device.type, enabled=False):
        weights = (q.float() @ k.float().transpose(-2, -1) + bias).softmax(dim=-1).mean(dim=1)  # [B*n, M, M]
    if labels is not None:
        real = (labels >= 0).repeat(len(q) // len(labels), 1)  # [B*n, M]
        weights = weights * real.unsqueeze(2) * real.unsqueeze(1)
    return weights.sum(dim=1)


def _queries_keys_values(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries with their scale, keys and values [B*n, A, M, d] of windows [B*n, M, D']."""
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:  # V2: a bias for queries and values only
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    qkv = F.linear(x, attention.qkv.weight, bias).reshape(*x.shape[:2], 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B*n, A, M, d]
    if hasattr(attention, "logit_scale"):  # V2: cosines with a learned temperature
        scale = attention.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()  # [A, 1, 1]
        return (F.normalize(q.float(), dim=-1) * scale).type_as(v), F.normalize(k.float(), dim=-1).type_as(v), v
    return q * attention.scale, k, v


def _position_bias(attention: Any, window: tuple[int, int]) -> Tensor:
    """Return the position bias [A, M, M] of windows that may be smaller than the attention's own."""
    (wh, ww), own = window, attention.window_size
    index = attention.relative_position_index.view(*own, *own)[:wh, :ww, :wh, :ww].reshape(wh * ww, wh * ww)
    if hasattr(attention, "cpb_mlp"):  # V2: continuous, section 3.3
        table = 16 * torch.sigmoid(attention.cpb_mlp(attention.relative_coords_table).flatten(0, 2))
    else:
        table = attention.relative_position_bias_table  # [(2wh-1)(2ww-1), A]
    bias: Tensor = table[index].permute(2, 0, 1)
    return bias
