"""timm's transformer blocks, which also say what is attended to, and which keep little for the backward pass.

A block keeps timm's weights and names: `read_blocks` only gives it another class, whose `forward` is the computation
below. So whatever wraps modules (DDP, FSDP, compilers, hooks) sees every call. Where the block is the standard one and
attention is plain products, its layers are those of `mst.model.lean`.

Source: Dosovitskiy et al. 2021; stochastic depth (Huang et al. 2016) computes only the samples whose branch is kept, as
DINOv2 (Oquab et al. 2023, section 5) does; which ones are kept is drawn as timm draws it, sample by sample.

Letters (docs/algorithm.md): B images, T tokens, D embedding size, A heads, d = D / A, N patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from timm.layers.activations import GELU
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mst.model.attention import attend, cls_attention
from mst.model.lean import attention, gelu_linear, linear, norm_linear
from mst.model.stochastic_depth import kept_samples


def is_standard(block: Any) -> bool:
    """Whether the lean computation is what this timm block does."""
    attn = block.attn
    return (
        has_standard_parts(block)
        and type(attn) is Attention
        and attn.gate is None
        and all(isinstance(norm, nn.Identity) for norm in (attn.q_norm, attn.k_norm, attn.norm))
    )


def has_standard_parts(block: Any) -> bool:
    """Whether all but the attention itself is as in a standard block: norms, MLP, nothing dropped within a branch."""
    norms, attn, mlp = (block.norm1, block.norm2), block.attn, block.mlp
    return (
        all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in norms)
        and type(mlp) is Mlp
        and _is_gelu(mlp.act)
        and isinstance(mlp.norm, nn.Identity)
        and not any(drop.p for drop in (attn.attn_drop, attn.proj_drop, mlp.drop1, mlp.drop2))
    )


def _is_gelu(act: nn.Module) -> bool:
    return type(act) is GELU or (type(act) is nn.GELU and act.approximate == "none")


class Reading(NamedTuple):
    """What to read of a last block's attention.

    Attributes:
        prefix: tokens before the patch tokens.
        has_cls: whether token 0 is a CLS token.
        cls_only: compute token 0 only; the block must be `lean`.
        importance: whether to return the importance.
    """

    prefix: int
    has_cls: bool
    cls_only: bool
    importance: bool


Read = tuple[Tensor, Tensor | None]
"""Tokens after a block [B, T, D] (or [B, 1, D], token 0), and importance [B, N], float32, detached, or None."""


class VitBlock(Block):
    """timm's `Block`.

    Attributes:
        lean: whether all of the network's blocks are standard ones.
    """

    lean: bool

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        reading: Reading | None = None,
    ) -> Any:
        """Return x [B, T, D] after the block; with `reading`, the pair `Read`."""
        if reading is None:
            plain = attn_mask is None and not is_causal
            return _lean(self, x) if plain and self._is_lean() else super().forward(x, attn_mask, is_causal)
        if reading.cls_only:
            return _cls_token(self, x, reading)
        if not reading.importance:
            return self.forward(x), None
        y, importance = attend(self.attn, self.norm1(x), None, prefix=reading.prefix, has_cls=reading.has_cls)
        x = x + self.drop_path1(self.ls1(y))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), importance

    def _is_lean(self) -> bool:
        return self.lean and not self.attn.fused_attn


class RotaryBlock(EvaBlock):
    """timm's `EvaBlock`."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        reading: Reading | None = None,
    ) -> Any:
        """Return x [B, T, D] after the block; with `reading`, the pair `Read`."""
        if reading is None:
            return super().forward(x, rope, attn_mask, is_causal)
        if not reading.importance:
            return super().forward(x, rope), None
        y, importance = attend(self.attn, self.norm1(x), rope, prefix=reading.prefix, has_cls=reading.has_cls)
        x = x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y), importance


def read_blocks(blocks: Iterable[Any]) -> None:
    """Give timm's blocks of one network the classes above."""
    blocks = list(blocks)
    lean: Any = all(type(block) is Block and is_standard(block) for block in blocks)
    for block in blocks:
        if type(block) is Block:
            block.__class__, block.lean = VitBlock, lean
        elif type(block) is EvaBlock:
            block.__class__ = RotaryBlock


def _lean(block: Any, x: Tensor) -> Tensor:
    """Run a standard block on x [B, T, D]; attention is plain products, so T should be moderate."""
    attn = block.attn

    def attended(x: Tensor) -> Tensor:
        qkv = norm_linear(x, block.norm1, attn.qkv.weight, attn.qkv.bias)  # [B, T, 3 * D]
        return linear(attention(qkv, attn.num_heads, attn.scale), attn.proj, _gamma(block.ls1))

    x = add_branch(x, attended, x, drop_rate(block.drop_path1))
    return add_branch(x, lambda x: _mlp(block, x), x, drop_rate(block.drop_path2))


def _cls_token(block: Any, x: Tensor, reading: Reading) -> Read:
    """Run a standard last block where only token 0 is wanted: one query, but keys and values of all tokens."""
    attn = block.attn
    width = attn.attn_dim
    received: list[Tensor] = []

    def attended(x: Tensor) -> Tensor:
        weight, bias = attn.qkv.weight, attn.qkv.bias  # [3 * D, D], [3 * D] or None
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        q = norm_linear(x[:, :1], block.norm1, weight[:width], first)  # [B, 1, D]
        kv = norm_linear(x, block.norm1, weight[width:], rest)  # [B, T, 2 * D]
        q = q.view(len(x), 1, attn.num_heads, -1).transpose(1, 2)  # [B, A, 1, d]
        k, v = kv.view(*x.shape[:2], 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [B, A, T, d]
        if reading.importance:
            received.append(cls_attention(q, k, attn.scale)[:, reading.prefix :])
        out = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v  # [B, A, 1, d]
        return linear(out.transpose(1, 2).flatten(2), attn.proj, _gamma(block.ls1))  # [B, 1, D]

    cls = add_branch(x[:, :1], attended, x, 0.0 if reading.importance else drop_rate(block.drop_path1))
    cls = add_branch(cls, lambda x: _mlp(block, x), cls, drop_rate(block.drop_path2))
    return cls, received[0] if received else None


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], inputs: Tensor, drop_rate: float) -> Tensor:
    """Return x + branch(inputs) with stochastic depth: samples whose branch is dropped are not computed.

    Args:
        x: the residual stream [B, ..., D].
        branch: from inputs of b samples to what is added to them, sample by sample.
        inputs: what the branch gets [B, ..., D].
        drop_rate: probability that a sample's branch is left out; the others are scaled by 1 / (1 - drop_rate).
    """
    if drop_rate == 0.0:
        return x + branch(inputs)
    # Drawn on the CPU whatever the device: no waiting for it.
    kept, scale = kept_samples(len(x), drop_rate).nonzero()[:, 0], 1.0 / (1.0 - drop_rate)
    if len(kept) == 0:  # one sample with weight zero, so that every weight has its gradient of zero
        kept, scale = torch.zeros(1, dtype=torch.int64), 0.0
    if len(kept) == len(x):
        return torch.add(x, branch(inputs).to(x.dtype), alpha=scale)
    kept = kept.to(x.device, non_blocking=True)
    added = branch(inputs.index_select(0, kept))  # [b, ..., D]
    return x.index_add(0, kept, added.to(x.dtype), alpha=scale)


def _mlp(block: Any, x: Tensor) -> Tensor:
    hidden = norm_linear(x, block.norm2, block.mlp.fc1.weight, block.mlp.fc1.bias)  # [B, T, 4 * D]
    return gelu_linear(hidden, block.mlp.fc2, _gamma(block.ls2))


def _gamma(scale: nn.Module) -> Tensor | None:
    """Return a LayerScale's factors [D], or None for an identity."""
    gamma: Tensor | None = getattr(scale, "gamma", None)
    return gamma


def drop_rate(drop_path: nn.Module) -> float:
    """Return the probability with which a layer of stochastic depth leaves a sample's branch out now."""
    return float(getattr(drop_path, "drop_prob", 0.0)) if drop_path.training else 0.0
