"""Draws by position: any part of a batch has the numbers that the whole batch has there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mst.model.stochastic_depth import BRANCHES, branch_draws, kept_samples
from mst.objective.draws import StepDraws
from mst.objective.masking import STRATEGIES, attention_mask
from mst.runtime.seeding import derive_seed, uniforms

CROPS, BATCH, TOKENS = 2, 13, 36
WHOLE = StepDraws(seed=3, step=7, positions=range(BATCH), batch=BATCH)


def splitmix64(seed: int, number: int) -> int:
    """Return output `number` of SplitMix64 (Steele, Lea and Flood 2014), one bit of Python at a time."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_numbers_are_those_of_splitmix64() -> None:
    assert [splitmix64(1234567, n) for n in range(3)] == [  # the published test vector of this seed
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    counters = np.array([[0, 1, 5], [2**40, 2**62, 12345]])
    for seed in (0, 1, 2**63 - 1, derive_seed("x")):
        expected = [[(splitmix64(seed, int(n)) >> 40) / 2**24 for n in row] for row in counters]
        assert torch.equal(uniforms(seed, counters), torch.tensor(expected))


def test_numbers_are_uniform_and_independent() -> None:
    numbers = WHOLE.uniform("test", CROPS * BATCH, 4096).double()  # [26, 4096]
    assert 0 <= numbers.min() < numbers.max() < 1
    histogram = torch.histc(numbers, 16, 0, 1) / numbers.numel()
    assert (histogram - 1 / 16).abs().max() < 0.002  # 5 standard deviations of a cell are 0.004
    correlation = torch.corrcoef(numbers) - torch.eye(len(numbers))
    assert correlation.abs().max() < 6 / 4096**0.5


def parts_of(rows: Tensor) -> Tensor:
    """Return [crops, batch, ...] of crop-major rows."""
    return rows.unflatten(0, (CROPS, -1))


@pytest.mark.parametrize("bounds", [[(0, 13)], [(0, 6), (6, 13)], [(0, 1), (1, 3), (3, 13)]])
@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "none"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_masks_of_parts_are_the_mask(strategy: str, share: float, bounds: list[tuple[int, int]]) -> None:
    importance = torch.rand(CROPS, BATCH, TOKENS, generator=torch.Generator().manual_seed(0))

    def mask(draws: StepDraws, part: slice) -> Tensor:
        return attention_mask(
            importance[:, part].flatten(0, 1),
            strategy=strategy,
            eligible_fraction=0.5,
            mask_probability=0.6,
            generator=draws,
            grid=(6, 6),
            masked_sample_share=share,
        )

    whole = parts_of(mask(WHOLE, slice(None)))
    masked = whole.any(dim=2).sum()
    assert masked == BATCH * CROPS * share  # exact over the whole batch, all crops together
    found = [parts_of(mask(WHOLE.of(slice(*ends)), slice(*ends))) for ends in bounds]
    assert torch.equal(torch.cat(found, dim=1), whole)


def test_steps_seeds_purposes_crops_and_images_differ() -> None:
    streams = [
        WHOLE.uniform("a", 26, 5),
        WHOLE.uniform("b", 26, 5),
        WHOLE.from_crop(1).uniform("a", 26, 5),
        StepDraws(3, 8, range(BATCH), BATCH).uniform("a", 26, 5),
        StepDraws(4, 7, range(BATCH), BATCH).uniform("a", 26, 5),
    ]
    rows = torch.cat(streams)
    assert len(rows.unique(dim=0)) == len(rows) - BATCH  # crop 1 is in the first and in the third


def test_branches_take_the_draws_of_their_images() -> None:
    def kept(draws: StepDraws, branches: int) -> Tensor:
        with branch_draws(lambda rows, count: draws.uniform("depth", rows, count)):
            return torch.stack([kept_samples(CROPS * len(draws.positions), 0.5) for _ in range(branches)], dim=1)

    whole = parts_of(kept(WHOLE, BRANCHES + 3))
    assert 0.4 < whole.mean() < 0.6
    part = parts_of(kept(WHOLE.of(slice(4, 9)), BRANCHES + 3))
    assert torch.equal(part, whole[:, 4:9])
    assert torch.equal(kept(WHOLE, 5), whole.flatten(0, 1)[:, :5])
