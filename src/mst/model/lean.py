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


def has_values(x: Tensor) -> bool:
    """Whether x is numbers in memory, which can be looked at; not so in a simulation, an export or a compiler."""
    return type(x) is Tensor and not (x.is_meta or torch.compiler.is_compiling())


def linear(x: Tensor, layer: nn.Linear, gamma: Tensor | None = None) -> Tensor:
    """Return layer(x) * gamma for x [..., D]; the scale of a LayerScale [E] is folded into weight and bias."""
    return product(x, *_scaled(layer, gamma))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear layer (weight [E, D], bias [E]) of x [..., D]."""
    out: Tensor = _Linear.apply(x, weight, bias, compute_type(x))
    return out


def gelu_linear(x: Tensor, layer: nn.Linear, gamma: Tensor | None = None) -> Tensor:
    """Return layer(GELU(x)) * gamma, as `linear`; the gradient of GELU takes the place of its output's."""
    out: Tensor = _GeluLinear.apply(x, *_scaled(layer, gamma), compute_type(x))
    return out


def norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear layer (weight [E, D], bias [E]) of norm(x), x [..., D]; x itself is all that is kept."""
    out: Tensor = _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias, compute_type(x))
    return out


def attention(
    qkv: Tensor, heads: int, scale: float | Tensor, bias: Tensor | None = None, blocked: Tensor | None = None
) -> Tensor:
    """Return softmax(scale * q k^T + bias + blocked) v, heads side by side [B, T, D], of qkv [B, T, 3 * D].

    Keeps T x T matrices of up to 4 * d tokens only, when they are no larger than the hidden layer that follows.

    Args:
        qkv: queries, keys and values of all heads.
        heads: A.
        scale: of the scores; a tensor [A, 1, 1] makes them cosines times each head's scale, as in Swin V2.
        bias: [A, T, T].
        blocked: [n, 1, T, T] with a factor n of B, one for each of n samples in turn; needs `bias`, has no gradient.
    """
    cosine = isinstance(scale, Tensor)
    out: Tensor = _Attention.apply(qkv, heads, 1.0 if cosine else scale, scale if cosine else None, bias, blocked)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        x, narrow = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, _kept(weight, narrow))
        ctx.bias = bias is not None
        return _product(x, narrow, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *_product_gradients(grad, x, weight.to(x.dtype), ctx.bias), None


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        x, narrow = x.to(dtype), weight.to(dtype)
        y = F.gelu(x)
        ctx.save_for_backward(x, y, _kept(weight, narrow))
        ctx.bias = bias is not None
        return _product(y, narrow, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight = ctx.saved_tensors
        dy, dweight, dbias = _product_gradients(grad, y, weight.to(y.dtype), ctx.bias)
        return torch.ops.aten.gelu_backward.grad_input(dy, x, grad_input=dy), dweight, dbias, None


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
        x, narrow = _wide(x, norm_weight), weight.to(dtype)
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)  # [..., D]
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, rstd, _kept(weight, narrow))
        ctx.eps, ctx.bias = eps, bias is not None
        return _product(y.to(dtype), narrow, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, rstd, weight = ctx.saved_tensors
        shape = x.shape[-1:]
        y, _, _ = torch.native_layer_norm(x, shape, norm_weight, norm_bias, ctx.eps)  # [..., D], once more
        dy, dweight, dbias = _product_gradients(grad, y.to(grad.dtype), weight.to(grad.dtype), ctx.bias)
        dx, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
            dy.to(x.dtype), x, shape, mean, rstd, norm_weight, norm_bias, [True, True, True]
        )
        return dx, dnorm_weight, dnorm_bias, None, dweight, dbias, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any,
        qkv: Tensor,
        heads: int,
        scale: float,
        temperature: Tensor | None,
        bias: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        batch, tokens, width = qkv.shape
        packed = _moved(qkv.view(batch, tokens, 3, heads, -1), 2, 0, 3, 1, 4)  # [3, B, A, T, d]
        norms = None if temperature is None else _to_cosines(packed, temperature)  # [2, B, A, T, 1]
        q, k, v = packed.flatten(1, 2)  # each [B*A, T, d]
        added = None if bias is None else _added(bias, blocked, qkv.dtype)  # [A, T, T] or [n, A, T, T]
        weights = _weights(q, k, scale, added)  # [B*A, T, T]
        keep = tokens <= 4 * q.shape[2]
        ctx.save_for_backward(packed, temperature, norms, *((weights, None) if keep else (None, added)))
        ctx.scale, ctx.bias = scale, None if bias is None else bias.dtype
        out = torch.bmm(weights, v)  # [B*A, T, d]
        return _moved(out.view(batch, heads, tokens, -1), 0, 2, 1, 3).view(batch, tokens, width // 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, temperature, norms, weights, added = ctx.saved_tensors
        _, batch, heads, tokens, _ = packed.shape
        q, k, v = packed.flatten(1, 2)  # each [B*A, T, d]
        grad = grad.view(batch, tokens, heads, -1).transpose(1, 2).reshape(v.shape)  # [B*A, T, d]
        if weights is None:
            weights = _weights(q, k, ctx.scale, added)  # [B*A, T, T], once more
        dpacked = torch.empty_like(packed)
        dq, dk, dv = dpacked.flatten(1, 2)  # each [B*A, T, d]
        torch.bmm(weights.transpose(1, 2), grad, out=dv)
        dweights = torch.bmm(grad, v.transpose(1, 2))  # [B*A, T, T]
        dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)  # [B*A, T, T]
        del weights, dweights
        torch.bmm(dscores, k, out=dq)
        torch.bmm(dscores.transpose(1, 2), q, out=dk)
        dtemperature = None
        if temperature is None:
            dpacked[:2] *= ctx.scale
        else:
            dtemperature = _from_cosines(dpacked, packed, norms, temperature)
        dqkv = _moved(dpacked, 1, 3, 0, 2, 4)  # [B, T, 3, A, d]
        dbias = None
        if ctx.needs_input_grad[4]:
            dbias = dscores.view(batch, heads, tokens, tokens).sum(dim=0).to(ctx.bias)
        return dqkv.view(batch, tokens, -1), None, None, dtemperature, dbias, None


def _moved(x: Tensor, *order: int) -> Tensor:
    """Return a copy of x with its dimensions in this order, the last one last; in words of 16 bytes where they fit."""
    words = x.contiguous()
    if words.shape[-1] * words.element_size() % 16 == 0 and words.storage_offset() * words.element_size() % 16 == 0:
        words = words.view(torch.complex128)
    return words.permute(order).clone(memory_format=torch.contiguous_format).view(x.dtype)


def _weights(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Return softmax(scale * q k^T + bias) [B*A, T, T] of queries and keys [B*A, T, d], bias [A, T, T] or [n, A, T, T].

    With a bias the windows are small, and exponentials divided by their sums take two thirds of the time of torch's
    softmax, which is the way where a sum would leave the middle of the type's range.
    """
    if bias is None:
        return (q * scale if scale != 1.0 else q).bmm(k.transpose(1, 2)).softmax(dim=-1).to(q.dtype)
    if has_values(q):
        weights = _scores(q, k, scale, bias).exp_()
        sums = weights.sum(dim=-1, keepdim=True, dtype=torch.promote_types(q.dtype, torch.float32))  # [B*A, T, 1]
        kind = torch.finfo(q.dtype)
        lowest, highest = (value.item() for value in sums.aminmax())
        if lowest > kind.tiny**0.5 and highest < kind.max**0.5:
            return weights.mul_(sums.reciprocal_())
    return _scores(q, k, scale, bias).softmax(dim=-1).to(q.dtype)


def _scores(q: Tensor, k: Tensor, scale: float, bias: Tensor) -> Tensor:
    """Return scale * q k^T + bias [B*A, T, T]; arguments as of `_weights`."""
    scores = q.bmm(k.transpose(1, 2))
    by_bias = scores.view(-1, *bias.shape)
    torch.add(bias, by_bias, alpha=scale, out=by_bias)
    return scores


def _added(bias: Tensor, blocked: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the sum of both arguments of `attention` in a type, in the order in which scores lie in memory.

    Less each head's mean, which changes no softmax: narrow types are finer near zero.
    """
    added = bias - bias.mean(dim=(1, 2), keepdim=True)
    added = added if blocked is None else added + blocked
    return added.to(dtype, memory_format=torch.contiguous_format)


def _to_cosines(packed: Tensor, temperature: Tensor) -> Tensor:
    """Scale queries and keys in packed [3, B, A, T, d] to length temperature [A, 1, 1] and one; return their norms."""
    wide = packed[:2].to(torch.promote_types(packed.dtype, torch.float32))  # [2, B, A, T, d]
    norms: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min_(
        1e-12
    )  # [2, B, A, T, 1], as F.normalize
    wide /= norms
    wide[0] *= temperature
    packed[:2] = wide
    return norms


def _from_cosines(dpacked: Tensor, packed: Tensor, norms: Tensor, temperature: Tensor) -> Tensor:
    """Turn gradients of what `_to_cosines` made into those of what it was given, in place; return the temperature's."""
    grad = dpacked[:2].to(norms.dtype)  # [2, B, A, T, d]
    unit = packed[:2].to(norms.dtype, copy=True)
    unit[0] /= temperature
    along = (unit * grad).sum(dim=-1, keepdim=True)  # [2, B, A, T, 1]
    grad -= unit.mul_(along)  # what would change a length does not count
    grad /= norms
    grad[0] *= temperature
    dpacked[:2] = grad
    return along[0].sum(dim=(0, 2)).unsqueeze(-1)  # [A, 1, 1]


def _kept(weight: Tensor, narrow: Tensor) -> Tensor:
    """Return what to keep of a weight and its copy in the compute type: a parameter is there anyway, and cast again."""
    return weight if weight.is_leaf else narrow


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
    rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)  # [B*T, E], [B*T, D]
    tall = weight.shape[1] < weight.shape[0] <= len(rows) // 8  # then oneDNN is faster if it turns the narrower factor
    dweight = (inputs.t() @ rows).t() if tall else rows.t() @ inputs  # [E, D]
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
        dy = torch.ops.aten.gelu_backward.grad_input(grad.to(y.dtype), y, grad_input=y)
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            dy, wide, mean, rstd, weight, *sizes, ctx.groups, [True, True, True]
        )
        return dx.to(x.dtype), None, dweight, dbias, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return (B, C, h * w) of maps [B, C, h, w]."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    """Return x as the kernel wants it: a CPU takes bfloat16 beside float32 weights and adds up in float32."""
    return x if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.to(weight.dtype)
