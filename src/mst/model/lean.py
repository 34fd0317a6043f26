"""Layers that keep little for the backward pass: what costs one pass over memory is computed again instead.

Source: selective recomputation (Korthikanti et al. 2022, section 4), applied to the cheap parts of a transformer block.
Forward and backward are the usual definitions; tests compare them with autograd's in float64. Products run in the
autocast type, normalisations in float32, as autocast has it.

Letters (docs/algorithm.md): B images, T tokens, D embedding size, A heads, d = D / A; here also E = outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = bool(
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether oneDNN's own linear layer on plain tensors is there (not in every build of torch)."""
ONEDNN_BF16 = bool(ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""Whether it takes bfloat16 on this CPU."""


def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of a linear layer's product from the shapes of its arguments."""
    return 2 * x.numel() * weight[0]


FLOP_FORMULAS: dict[Any, Any] = {torch.ops.mkldnn._linear_pointwise: _linear_flops} if ONEDNN else {}
"""For `FlopCounterMode(custom_mapping=...)`, which does not know oneDNN's own product."""


def compute_type(x: Tensor) -> torch.dtype:
    """Return the type in which autocast runs products of x, or its own type without autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def linear(x: Tensor, layer: nn.Linear, gamma: Tensor | None = None) -> Tensor:
    """Return layer(x) * gamma for x [..., D]; the scale of a LayerScale [E] is folded into weight and bias."""
    weight, bias = _scaled(layer, gamma)
    out: Tensor = _Linear.apply(x, weight, bias, compute_type(x))
    return out


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear layer (weight [E, D], bias [E]) of norm(x), x [B, T, D]; x itself is all that is kept."""
    out: Tensor = _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias, compute_type(x))
    return out


def attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """Return softmax(scale * q k^T) v, heads side by side [B, T, D], of qkv [B, T, 3 * D].

    Keeps T x T matrices of up to 4 * d tokens only, when they are no larger than the hidden layer that follows.
    """
    out: Tensor = _Attention.apply(qkv, heads, scale)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        x, narrow = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, narrow)
        ctx.bias = bias is not None
        return _product(x, narrow, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_product_gradients(grad, x, weight, ctx.bias), None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        x, narrow = x.to(norm_weight.dtype), weight.to(dtype)
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)  # [B, T, D]
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, rstd, narrow)
        ctx.eps, ctx.bias = eps, bias is not None
        return _product(y.to(dtype), narrow, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, rstd, weight = ctx.saved_tensors
        shape = x.shape[-1:]
        y, _, _ = torch.native_layer_norm(x, shape, norm_weight, norm_bias, ctx.eps)  # [B, T, D], once more
        dy, dweight, dbias = _product_gradients(grad, y.to(grad.dtype), weight, ctx.bias)
        dx, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
            dy.to(x.dtype), x, shape, mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return dx, dnorm_weight, dnorm_bias, None, dweight, dbias, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float) -> Tensor:
        batch, tokens, width = qkv.shape
        packed = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous()  # [3, B, A, T, d]
        q, k, v = packed.flatten(1, 2)  # each [B*A, T, d]
        weights = _weights(q, k, scale)  # [B*A, T, T]
        ctx.save_for_backward(packed, weights if tokens <= 4 * q.shape[2] else None)
        ctx.scale = scale
        out = torch.bmm(weights, v)  # [B*A, T, d]
        return out.view(batch, heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, width // 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, weights = ctx.saved_tensors
        _, batch, heads, tokens, _ = packed.shape
        q, k, v = packed.flatten(1, 2)  # each [B*A, T, d]
        grad = grad.view(batch, tokens, heads, -1).transpose(1, 2).reshape(v.shape)  # [B*A, T, d]
        if weights is None:
            weights = _weights(q, k, ctx.scale)  # [B*A, T, T], once more
        dpacked = torch.empty_like(packed).flatten(1, 2)  # [3, B*A, T, d]
        torch.bmm(weights.transpose(1, 2), grad, out=dpacked[2])
        dweights = torch.bmm(grad, v.transpose(1, 2))  # [B*A, T, T]
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # [B*A, T, T]
        del weights, dweights
        torch.bmm(dscores, k, out=dpacked[0])
        torch.bmm(dscores.transpose(1, 2), q, out=dpacked[1])
        dpacked[:2] *= ctx.scale
        dqkv = dpacked.view(packed.shape).permute(1, 3, 0, 2, 4)  # [B, T, 3, A, d]
        return dqkv.reshape(batch, tokens, -1), None, None


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * q k^T) [B*A, T, T] of queries and keys [B*A, T, d]."""
    return (q * scale).bmm(k.transpose(1, 2)).softmax(dim=-1)


def _scaled(layer: nn.Linear, gamma: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the layer's weight [E, D] and bias [E], each output times its factor in gamma [E]."""
    weight, bias = layer.weight, layer.bias
    if gamma is None:
        return weight, bias
    return weight * gamma[:, None], None if bias is None else bias * gamma


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight^T + bias for x [..., D], weight [E, D] of one type, bias [E] of any."""
    narrow = None if bias is None else bias.to(x.dtype)
    if ONEDNN_BF16 and x.device.type == "cpu" and x.dtype == torch.bfloat16:  # adds the bias while the product is hot
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, narrow, "none", [], "")
        return out
    return F.linear(x, weight, narrow)


def _product_gradients(grad: Tensor, x: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x [..., D], weight [E, D] and bias [E] (None without one) for grad [..., E]."""
    rows = grad.flatten(0, -2)  # [B*T, E]
    dweight = rows.t() @ x.flatten(0, -2)  # [E, D]
    dx = (rows @ weight).view(x.shape)
    return dx, dweight, rows.sum(dim=0) if bias else None


class NormGelu(nn.GroupNorm):
    """GELU of a group normalisation of maps [B, C, h, w]; keeps the maps in their own type and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the type of x [B, C, h, w]."""
        out: Tensor = _NormGelu.apply(x, self.num_groups, self.weight, self.bias, self.eps)
        return out


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        y, mean, rstd = torch.native_group_norm(_wide(x, weight), weight, bias, *_sizes(x), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.gelu(y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        wide, sizes = _wide(x, weight), _sizes(x)
        y, _, _ = torch.native_group_norm(wide, weight, bias, *sizes, ctx.groups, ctx.eps)  # [B, C, h, w], once more
        dy = torch.ops.aten.gelu_backward(grad.to(y.dtype), y)
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            dy, wide, mean, rstd, weight, *sizes, ctx.groups, [True, True, True]
        )
        return dx.to(x.dtype), None, dweight, dbias, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return (B, C, h * w) of maps [B, C, h, w]."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    """Return x as the kernel wants it: a CPU takes bfloat16 beside float32 weights and adds up in float32."""
    return x if x.device.type == "cpu" else x.to(weight.dtype)
