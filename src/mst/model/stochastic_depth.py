"""Stochastic depth whose draws do not depend on how a batch is divided.

Source: Huang et al. 2016; timm's `DropPath` for the rule (a branch is left out per sample, the others are scaled up).
Differs from timm in that draws are made on the CPU, and that a training step says where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token

import torch
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

BRANCHES = 64
"""Branches whose draws are made together."""
Draw = Callable[[int, int], Tensor]
"""(samples, count) -> numbers in [0, 1) on the CPU [samples, count]; a larger count does not change those before."""


class _Branches:
    """The draws of one forward pass, branch after branch."""

    def __init__(self, draw: Draw) -> None:
        self._draw, self._numbers, self._next = draw, torch.empty(0, 0), 0

    def from_here(self) -> _Branches:
        """Return draws that go on as these will."""
        found = _Branches(self._draw)
        found._numbers, found._next = self._numbers, self._next
        return found

    def take(self, rows: int) -> Tensor:
        """Return the numbers of the next branch [rows]."""
        if self._next == self._numbers.shape[1]:
            self._numbers = self._draw(rows, self._next + BRANCHES)
        self._next += 1
        return self._numbers[:, self._next - 1]


_BRANCHES: ContextVar[_Branches | None] = ContextVar("branches", default=None)


@contextmanager
def branch_draws(draw: Draw | None) -> Iterator[None]:
    """Inside, in this thread, take the draws of one forward pass from `draw`; None = torch's global generator."""
    token = _BRANCHES.set(None if draw is None else _Branches(draw))
    try:
        yield
    finally:
        _BRANCHES.reset(token)


class _Again(AbstractContextManager[None]):
    """Inside, the draws that followed when this was made, however often it is entered."""

    def __init__(self, branches: _Branches) -> None:
        self._branches = branches.from_here()
        self._tokens: list[Token[_Branches | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_BRANCHES.set(self._branches.from_here()))

    def __exit__(self, *_: object) -> None:
        _BRANCHES.reset(self._tokens.pop())


def draws_again() -> tuple[bool, AbstractContextManager[None]]:
    """Return whether a training step says where draws come from, and a context in which the next ones come again.

    Without such a step they are torch's global ones, which the context leaves alone.
    """
    branches = _BRANCHES.get()
    return (False, nullcontext()) if branches is None else (True, _Again(branches))


def kept_samples(rows: int, drop_rate: float) -> Tensor:
    """Return which samples keep a branch [rows], ones and zeros on the CPU."""
    branches = _BRANCHES.get()
    if branches is None:
        return torch.empty(rows).bernoulli_(1.0 - drop_rate)
    return (branches.take(rows) >= drop_rate).float()


class DropPath(TimmDropPath):
    """timm's layer with the draws of `kept_samples`.

    Attributes:
        drawn: what the next pass multiplies its samples with, where somebody draws before it (`draw_before`).
    """

    drawn: Tensor | None = None
    before = False

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, ...] with whole samples set to zero, the others scaled by 1 / (1 - drop_prob)."""
        factors = self.drawn if self.before else self._draw(x)
        return x if factors is None else x * factors.to(x.dtype)

    def draw_before(self, x: Tensor) -> None:
        """Draw for the next pass, so that nothing but arithmetic is left for it; x has the shape of its input."""
        self.drawn, self.before = self._draw(x), True

    def _draw(self, x: Tensor) -> Tensor | None:
        """Return factors [B, 1, ...], float32 or wider, or None where nothing is left out."""
        if not self.training or not self.drop_prob:
            return None
        wide = torch.promote_types(x.dtype, torch.float32)
        kept = kept_samples(len(x), self.drop_prob).to(x.device, wide, non_blocking=True) / (1.0 - self.drop_prob)
        return kept.view(-1, *[1] * (x.ndim - 1))


def replace_drop_paths(model: nn.Module) -> None:
    """Replace timm's layers in a network by those of this module."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, TimmDropPath):
                setattr(module, name, DropPath(child.drop_prob))
