"""Which patch tokens the student does not see: MST's attention-guided mask and the strategies it is compared with.

Sources: MST (Li et al. 2021, section 3.2) for `attention_low`; AttMask (Kakogeorgiou et al. 2022, section 3.2) for
`attention_high` and `attention_hint`; BEiT (Bao et al. 2022, algorithm 1) and iBOT (Zhou et al. 2022) for `block`.
Differs from them in that every strategy hides the same expected number of tokens; docs/deviations.md has the details.

Letters: B images (each global crop is one), N = h*w patch tokens. True = hidden from the student.
"""

from __future__ import annotations

import difflib
import math
from typing import get_args

import torch
from torch import Tensor

from mst.config.schema import Strategy
from mst.errors import UsageError
from mst.model.tokens import Summary, Tokens
from mst.objective.draws import GeneratorDraws, StepDraws
from mst.objective.records import ObjectiveValues

Draws = StepDraws | GeneratorDraws
STRATEGIES: tuple[str, ...] = get_args(Strategy)
ATTENTION_STRATEGIES = frozenset({"attention_low", "attention_high", "attention_hint"})
"""Strategies that look at the values of `importance`; the others only at its shape."""

HINT_TOP_SHARE = 0.1
"""Share of the tokens, the very most attended, among which `attention_hint` reveals some (AttMask's default)."""
BLOCK_ASPECT = 0.3
"""Blocks have height / width between this and its inverse (BEiT's and iBOT's default)."""
BLOCK_ATTEMPTS = 10
"""Blocks drawn per image before the few tokens still missing are chosen one by one."""


def attention_mask(
    importance: Tensor,
    *,
    strategy: str,
    eligible_fraction: float,
    mask_probability: float,
    generator: torch.Generator | StepDraws,
    grid: tuple[int, int] | None = None,
    masked_sample_share: float = 1.0,
) -> Tensor:
    """Choose the tokens to hide.

    Exactly floor(eligible_fraction * N) tokens of an image are eligible, and each of them is hidden with probability
    `mask_probability`, independently. Eligible are, ties broken by the lower token index:

    - `none`: no token.
    - `attention_low`: the least attended (MST).
    - `attention_high`: the most attended (AttMask-High).
    - `attention_hint`: the most attended, but of the 10 % very most attended each is revealed with probability
      `eligible_fraction`, and the next most attended take the places (AttMask-Hint).
    - `random`: drawn uniformly from all tokens.
    - `block`: as many tokens as the others hide, but in rectangles (BEiT).

    Args:
        importance: attention that each token receives [B, N]; `none`, `random` and `block` read only shape and device.
        strategy: one of the names above.
        eligible_fraction: share of the tokens that may be hidden, in [0, 1] (the paper's 1/num).
        mask_probability: probability that an eligible token is hidden, in [0, 1].
        generator: source of every draw; on the CPU the mask is the same whatever the device of `importance`. With
            `StepDraws` it is the same however the batch is divided, too.
        grid: (h, w) of the tokens, used by `block` only; None = a square.
        masked_sample_share: share of the images that get a mask at all, in [0, 1]. The number of them (in the whole
            batch) is exact where share * B is whole, otherwise one of the two nearest, so that it holds on average.

    Returns:
        mask [B, N], bool, on the device of `importance`.

    Raises:
        UsageError: unknown strategy, a share outside [0, 1], or a grid that does not fit.
    """
    _check(importance, strategy, eligible_fraction, mask_probability, masked_sample_share)
    images, tokens = importance.shape
    device = importance.device
    if strategy == "none":
        return torch.zeros(images, tokens, dtype=torch.bool, device=device)
    draws = GeneratorDraws(generator) if isinstance(generator, torch.Generator) else generator
    count = math.floor(eligible_fraction * tokens)
    hidden = draws.uniform("mask", images, tokens) < mask_probability  # [B,N]
    if strategy == "block":
        mask = _blocks(hidden[:, :count].sum(dim=1), _checked_grid(grid, tokens), draws).to(device, non_blocking=True)
    else:
        mask = _eligible(importance, strategy, count, eligible_fraction, draws) & hidden.to(device, non_blocking=True)
    return mask & _masked_samples(images, masked_sample_share, draws).to(device, non_blocking=True)[:, None]


def student_mask(
    teacher: Summary | Tokens, values: ObjectiveValues, generator: torch.Generator | StepDraws
) -> Tensor | None:
    """Return the tokens to hide from the student [G*B, N], bool, or None for strategy `none`."""
    if values.strategy == "none":
        return None
    importance = teacher.importance  # [G*B,N], or None where only its shape matters
    if importance is None:
        importance = teacher.cls.new_zeros(len(teacher.cls), math.prod(teacher.grid))
    return attention_mask(
        importance,
        strategy=values.strategy,
        eligible_fraction=values.eligible_fraction,
        mask_probability=values.mask_probability,
        generator=generator,
        grid=teacher.grid,
        masked_sample_share=values.masked_sample_share,
    )


def _eligible(importance: Tensor, strategy: str, count: int, fraction: float, draws: Draws) -> Tensor:
    """Return the `count` tokens of each image that may be hidden [B,N], bool (fewer if too many are revealed)."""
    if strategy == "attention_low":
        return _rank(importance) < count
    if strategy == "attention_high":
        return _rank(importance, descending=True) < count
    images, tokens = importance.shape
    chance = draws.uniform("eligible", images, tokens).to(importance.device, non_blocking=True)  # [B,N]
    if strategy == "random":
        return _rank(chance) < count
    rank = _rank(importance, descending=True)  # [B,N], 0 = most attended
    revealed = (rank < math.ceil(HINT_TOP_SHARE * tokens)) & (chance < fraction)
    return (_rank(rank + tokens * revealed) < count) & ~revealed


def _blocks(targets: Tensor, grid: tuple[int, int], draws: Draws) -> Tensor:
    """Return masks [B,N] of rectangles with exactly `targets` [B] tokens each.

    As in BEiT and iBOT, a block covers at most what is still missing and at least (min(h, w) // 3)^2 tokens. Its last
    tokens are cut off where it would hide too many.
    """
    height, width = grid
    images, tokens = len(targets), height * width
    rows = torch.arange(height, device=targets.device)[:, None]  # [h,1]
    columns = torch.arange(width, device=targets.device)  # [w]
    smallest = max(1, (min(height, width) // 3) ** 2)
    mask = torch.zeros(images, tokens, dtype=torch.bool, device=targets.device)
    for attempt in range(BLOCK_ATTEMPTS):
        missing = targets - mask.sum(dim=1)  # [B]
        if not missing.any():
            return mask
        u = draws.uniform(f"block {attempt}", images, 4).t()[..., None, None]  # [4,B,1,1]
        area = torch.lerp(missing.clamp(max=smallest).float(), missing.float(), u[0, :, 0, 0])[:, None, None]
        aspect = BLOCK_ASPECT ** (2.0 * u[1] - 1.0)  # [B,1,1], height / width, uniform in its logarithm
        block_height = (area * aspect).sqrt().round().clamp(1, height)
        block_width = (area / aspect).sqrt().round().clamp(1, width)
        top = (u[2] * (height - block_height + 1)).floor()
        left = (u[3] * (width - block_width + 1)).floor()
        block = (rows >= top) & (rows < top + block_height) & (columns >= left) & (columns < left + block_width)
        new = block.flatten(1) & ~mask  # [B,N]
        mask |= new & (new.cumsum(dim=1) <= missing[:, None])
    missing = targets - mask.sum(dim=1)
    return mask | (_rank(draws.uniform("rest", images, tokens) + mask) < missing[:, None])


def _masked_samples(images: int, share: float, draws: Draws) -> Tensor:
    """Return which images get a mask [B], bool: of the whole batch, floor(share * images + a draw from [0, 1))."""
    numbers, own = draws.uniform_of_batch("masked samples", images)  # [whole batch + 1], [B]
    count = math.floor(share * (len(numbers) - 1) + float(numbers[-1]))
    return (_rank(numbers[None, :-1])[0] < count)[own]


def _rank(values: Tensor, *, descending: bool = False) -> Tensor:
    """Return each value's place in its sorted row [B,N], int64; equal values keep their order."""
    return values.argsort(dim=1, descending=descending, stable=True).argsort(dim=1)


def _check(importance: Tensor, strategy: str, fraction: float, probability: float, share: float) -> None:
    if strategy not in STRATEGIES:
        nearest = difflib.get_close_matches(strategy, STRATEGIES, n=1, cutoff=0.0)[0]
        raise UsageError(f"unknown strategy {strategy!r}: did you mean {nearest!r}? Known: {', '.join(STRATEGIES)}")
    if importance.ndim != 2:
        raise UsageError(f"importance has shape {tuple(importance.shape)}: give [images, tokens]")
    for name, value in (
        ("eligible_fraction", fraction),
        ("mask_probability", probability),
        ("masked_sample_share", share),
    ):
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"{name} is {value}: give a number from 0 to 1")


def _checked_grid(grid: tuple[int, int] | None, tokens: int) -> tuple[int, int]:
    if grid is None:
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise UsageError(f"strategy 'block': {tokens} tokens are not a square; give grid=(h, w)")
        return side, side
    if grid[0] * grid[1] != tokens:
        raise UsageError(f"strategy 'block': grid {grid[0]}x{grid[1]} does not hold {tokens} tokens")
    return grid
