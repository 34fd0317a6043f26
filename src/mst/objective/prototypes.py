"""Cross-entropy against soft targets over K prototypes, without the logits of all K in memory.

Source: the loss of Caron et al. 2021 (DINO), equations 2 and 3. For one vector x with logits s = W x / temperature and
target t it is sum(t) * logsumexp(s) - t . s; its gradient in s is sum(t) * softmax(s) - t. Both go through the
prototypes a chunk at a time, and the backward pass multiplies again instead of keeping logits (as chunked
cross-entropies of language models do, e.g. Wijmans et al. 2024, with one class as the target).

Letters: V views, B images, K prototypes, d width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = 2**20
"""Logits in memory at once on a CPU; 4 MB in float32, which its cache holds."""
CHUNK_ON_DEVICE = 2**24
"""The same elsewhere; 64 MB, so that starting the kernels of a chunk costs little beside them."""


def prototype_cross_entropy(vectors: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the sum over views and images of -sum_k targets_k log softmax(prototypes x / temperature)_k, nats.

    The products run in the autocast type, everything else in float32 (or float64 as it is).

    Args:
        vectors: what the head compares with the prototypes [V, B, d].
        prototypes: [K, d].
        targets: [V, B, K], or [1, B, K] where all views share them; need not sum to one; takes no gradient.
        temperature: of the softmax.
    """
    device = vectors.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype
    loss: Tensor = _PrototypeCrossEntropy.apply(vectors, prototypes, targets, temperature, dtype)
    return loss


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any, vectors: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        x, weight = vectors.flatten(0, 1).to(dtype), prototypes.to(dtype)  # [V*B, d], [K, d]
        logsumexp = torch.full_like(targets[..., 0], -torch.inf).expand(vectors.shape[:2])  # [V, B]
        dot, mass = torch.zeros_like(targets[..., 0]), torch.zeros_like(targets[..., 0])  # [1, B] or [V, B]
        for part in _chunks(x, len(weight)):
            logits = _logits(x, weight[part], temperature, targets).view(*vectors.shape[:2], -1)  # [V, B, k]
            target = targets[..., part]
            logsumexp = torch.logaddexp(logsumexp, logits.logsumexp(dim=-1))
            dot = dot + torch.linalg.vecdot(target, logits.sum(dim=0, keepdim=True) if len(target) == 1 else logits)
            mass = mass + target.sum(dim=-1)
        ctx.save_for_backward(x, weight, targets, logsumexp, mass)
        ctx.temperature, ctx.shape = temperature, vectors.shape
        return (mass * logsumexp).sum() - dot.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, logsumexp, mass = ctx.saved_tensors
        scale = grad / ctx.temperature
        dx = torch.zeros_like(x, dtype=targets.dtype)  # [V*B, d]
        dweight = torch.empty_like(weight, dtype=targets.dtype)  # [K, d]
        for part in _chunks(x, len(weight)):
            logits = _logits(x, weight[part], ctx.temperature, targets).view(*ctx.shape[:2], -1)  # [V, B, k], again
            dlogits = logits.sub_(logsumexp[..., None]).exp_().mul_(mass[..., None]).sub_(targets[..., part])
            dlogits = dlogits.mul_(scale).flatten(0, 1).to(x.dtype)  # [V*B, k]
            dx += dlogits @ weight[part]
            dweight[part] = dlogits.t() @ x
        return dx.view(ctx.shape), dweight, None, None, None


def _chunks(x: Tensor, prototypes: int) -> Iterator[slice]:
    """Yield slices of the prototypes whose logits of x [V*B, d] are about a chunk each."""
    size = max(1, (CHUNK_LOGITS if x.device.type == "cpu" else CHUNK_ON_DEVICE) // len(x))
    for start in range(0, prototypes, size):
        yield slice(start, min(start + size, prototypes))


def _logits(x: Tensor, weight: Tensor, temperature: float, like: Tensor) -> Tensor:
    """Return x weight^T / temperature [V*B, k] in the type of `like`."""
    return (x @ weight.t()).to(like.dtype).div_(temperature)
