"""Stochastic depth whose draws do not depend on how a batch is divided.

Source: Huang et al. 2016; timm's `DropPath` for the rule (a branch is left out per sample, the others are scaled up).
Differs from timm in that draws are made on the CPU, and that a share of a batch gets its share of the batch's draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn


class _Share(NamedTuple):
    generator: torch.Generator
    images: slice
    of: int


_SHARE: ContextVar[_Share | None] = ContextVar("share", default=None)


@contextmanager
def share_of_draws(generator: torch.Generator, images: slice, of: int) -> Iterator[None]:
    """Inside, in this thread, draw for `of` images and take the draws of `images`, which are all that is computed.

    Args:
        generator: on the CPU; shares of one batch need each their own, in the same state.
        images: start and stop.
        of: images of the whole batch.
    """
    token = _SHARE.set(_Share(generator, images, of))
    try:
        yield
    finally:
        _SHARE.reset(token)


def kept_samples(rows: int, drop_rate: float) -> Tensor:
    """Return which samples keep a branch [rows], ones and zeros on the CPU; rows are images, or crops of images."""
    share = _SHARE.get()
    if share is None:
        return torch.empty(rows).bernoulli_(1.0 - drop_rate)
    crops = rows // (share.images.stop - share.images.start)
    whole = torch.empty(crops, share.of).bernoulli_(1.0 - drop_rate, generator=share.generator)
    return whole[:, share.images].flatten()


class DropPath(TimmDropPath):
    """timm's layer with the draws of `kept_samples`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, ...] with whole samples set to zero, the others scaled by 1 / (1 - drop_prob)."""
        if not self.training or not self.drop_prob:
            return x
        kept = kept_samples(len(x), self.drop_prob) / (1.0 - self.drop_prob)
        return x * kept.to(x.device, x.dtype, non_blocking=True).view(-1, *[1] * (x.ndim - 1))


def replace_drop_paths(model: nn.Module) -> None:
    """Replace timm's layers in a network by those of this module."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, TimmDropPath):
                setattr(module, name, DropPath(child.drop_prob))
