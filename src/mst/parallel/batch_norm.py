"""BatchNorm whose statistics are of the images of all processes: torch's own SyncBatchNorm knows GPUs only.

Source: Ioffe and Szegedy 2015, algorithm 1. Mean and variance are taken one after the other, from sums over all
processes, so shares of unequal size are exact and nothing cancels.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class _Sum(torch.autograd.Function):
    """The sum over processes; each one's gradient is the sum of the gradients that all of them have of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm1d):
    """As nn.BatchNorm1d or 2d for inputs [B, C, ...], over the inputs of all processes."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalise [B, C, ...]; in training by the statistics of all processes, which the running ones follow."""
        if not self.training:
            return super().forward(images)
        wide = images.float()
        places = [0, *range(2, images.ndim)]
        shape = [1, -1, *[1] * (images.ndim - 2)]
        count = wide.new_full((1,), images.numel() / images.shape[1])
        total = _sum(torch.cat([wide.sum(dim=places), count]))  # [C + 1]
        number = total[-1].detach()
        mean = total[:-1] / number  # [C]
        centred = wide - mean.view(shape)
        variance = _sum(centred.square().sum(dim=places)) / number  # [C], biased
        self._follow(mean.detach(), variance.detach(), number)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight.float()
        normal = centred * scale.view(shape)
        if self.affine:
            normal = normal + self.bias.float().view(shape)
        return normal.to(images.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  (the name that torch gives it)
        """Inputs of any number of dimensions fit."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        """Move the running statistics; their variance is unbiased."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * number / (number - 1).clamp(min=1), share)


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total


def share_statistics(module: nn.Module) -> None:
    """Let every BatchNorm below `module` look at the images of all processes, in place; names and weights stay."""
    for child in module.modules():
        if type(child) in {nn.BatchNorm1d, nn.BatchNorm2d}:
            child.__class__ = SharedBatchNorm
