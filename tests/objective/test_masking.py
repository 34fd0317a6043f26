"""Masks: against the slow definition, and the properties that hold for every strategy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.objective.masking import ATTENTION_STRATEGIES, HINT_TOP_SHARE, STRATEGIES, attention_mask
from mst.runtime.seeding import generator
from reference import masks as reference

SHAPES = [(1, 1), (1, 4), (3, 16), (2, 12), (5, 35), (4, 49), (2, 196)]
MASKING = [strategy for strategy in STRATEGIES if strategy != "none"]
GRIDS = {1: (1, 1), 4: (2, 2), 16: (4, 4), 12: (2, 6), 35: (7, 5), 49: (7, 7), 196: (14, 14)}


def random_importance(images: int, tokens: int, seed: int, levels: int | None = None) -> torch.Tensor:
    """Draw [images, tokens]; with `levels`, few distinct values and so many ties."""
    draws = torch.rand(images, tokens, generator=generator("importance", seed))
    return draws if levels is None else (draws * levels).floor()


def mask_of(importance: torch.Tensor, strategy: str, fraction: float, probability: float, seed: int = 0, **more: float):
    return attention_mask(
        importance,
        strategy=strategy,
        eligible_fraction=fraction,
        mask_probability=probability,
        generator=generator("mask", seed),
        grid=GRIDS.get(importance.shape[1]),
        **more,
    )


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 5),
    tokens=st.integers(1, 40),
    fraction=st.floats(0, 1),
    levels=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 10_000),
)
def test_eligible_tokens_equal_the_slow_definition(
    images: int, tokens: int, fraction: float, levels: int | None, seed: int
) -> None:
    importance = random_importance(images, tokens, seed, levels)
    for strategy in ("attention_low", "attention_high"):
        # With probability one the mask is the set of eligible tokens.
        mask = mask_of(importance, strategy, fraction, 1.0, seed)
        np.testing.assert_array_equal(mask, reference.eligible_tokens(importance.numpy(), strategy, fraction))
        part = mask_of(importance, strategy, fraction, 0.5, seed)
        assert not (part & ~mask).any()

    mask = mask_of(importance, "attention_hint", fraction, 1.0, seed)
    top = reference.most_attended(importance.numpy(), HINT_TOP_SHARE)
    count = math.floor(fraction * tokens)
    assert (mask.sum(1) <= count).all()
    assert (mask.sum(1) >= min(count, tokens - top.sum(1).max())).all()
    if (mask.sum(1) == count).all() and count > top.sum(1).max():
        revealed = top & ~mask.numpy()
        np.testing.assert_array_equal(
            mask, reference.eligible_tokens(importance.numpy(), "attention_hint", fraction, revealed)
        )


@pytest.mark.parametrize("strategy", MASKING)
@pytest.mark.parametrize(("images", "tokens"), SHAPES)
@pytest.mark.parametrize(("fraction", "probability"), [(0.5, 1.0), (0.3, 1.0), (1.0, 1.0), (0.5, 0.0), (0.0, 1.0)])
def test_count_is_exact_with_certain_masking(
    strategy: str, images: int, tokens: int, fraction: float, probability: float
) -> None:
    mask = mask_of(random_importance(images, tokens, 1), strategy, fraction, probability)
    assert mask.shape == (images, tokens)
    assert mask.dtype == torch.bool
    expected = math.floor(fraction * tokens) if probability else 0
    counts = mask.sum(dim=1)
    if strategy == "attention_hint" and fraction == 1.0:
        assert (counts >= tokens - math.ceil(HINT_TOP_SHARE * tokens)).all()  # what is revealed cannot be refilled
    else:
        assert (counts == expected).all()


@pytest.mark.parametrize("strategy", MASKING)
def test_masked_share_is_the_same_for_every_strategy(strategy: str) -> None:
    mask = mask_of(random_importance(4000, 49, 2), strategy, 0.5, 0.3)
    counts = mask.sum(dim=1).float()
    # Binomial(24, 0.3): mean 7.2, variance 5.04; five standard errors over 4000 images.
    assert abs(counts.mean() - 7.2) < 5 * math.sqrt(5.04 / 4000)
    assert abs(counts.var() - 5.04) < 0.6


def test_tokens_are_masked_independently_with_the_given_probability() -> None:
    mask = mask_of(torch.arange(20.0).repeat(5000, 1), "attention_low", 0.5, 0.3).float()
    assert (mask[:, 10:] == 0).all()
    assert (mask[:, :10].mean(dim=0) - 0.3).abs().max() < 5 * math.sqrt(0.21 / 5000)
    covariance = torch.cov(mask[:, :10].T)
    assert (covariance - covariance.diag().diag()).abs().max() < 5 * 0.21 / math.sqrt(5000)


def test_ties_go_to_the_lower_index() -> None:
    importance = torch.tensor([[2.0, 1.0, 1.0, 1.0, 2.0, 2.0]])
    assert mask_of(importance, "attention_low", 1 / 3, 1.0).tolist() == [[False, True, True, False, False, False]]
    assert mask_of(importance, "attention_high", 1 / 3, 1.0).tolist() == [[True, False, False, False, True, False]]


def test_hint_reveals_its_share_of_the_most_attended() -> None:
    mask = mask_of(torch.arange(100.0).repeat(2000, 1), "attention_hint", 0.3, 1.0)
    revealed = (~mask[:, 90:]).float()
    assert abs(revealed.mean() - 0.3) < 5 * math.sqrt(0.21 / 20_000)
    assert mask[:, 70:90].all()  # the places that were revealed are taken by the next most attended, below 70
    assert (mask[:, :70].sum(dim=1) == revealed.sum(dim=1)).all()


def test_random_reaches_every_token_evenly() -> None:
    mask = mask_of(torch.zeros(5000, 16), "random", 0.5, 0.5)
    assert (mask.float().mean(dim=0) - 0.25).abs().max() < 5 * math.sqrt(0.1875 / 5000)


@pytest.mark.parametrize("grid", [(7, 7), (6, 9)])
def test_blocks_are_as_blocky_as_the_slow_definition(grid: tuple[int, int]) -> None:
    height, width = grid
    target = math.floor(0.4 * height * width)
    mask = attention_mask(
        torch.zeros(600, height * width),
        strategy="block",
        eligible_fraction=0.4,
        mask_probability=1.0,
        generator=generator("blocks"),
        grid=grid,
    )
    slow = np.stack([reference.block_mask(target, height, width, seed) for seed in range(600)])
    scattered = mask_of(torch.zeros(600, height * width), "random", 0.4, 1.0)
    agreement = reference.neighbour_agreement(mask.unflatten(1, grid).numpy())
    assert abs(agreement - reference.neighbour_agreement(slow)) < 0.01
    assert agreement > reference.neighbour_agreement(scattered.unflatten(1, grid).numpy()) + 0.2
    assert np.abs(mask.float().mean(dim=0).numpy() - slow.reshape(600, -1).mean(axis=0)).max() < 0.12


def test_a_share_of_the_images_gets_no_mask() -> None:
    importance = random_importance(10, 16, 3)
    for seed in range(5):
        mask = mask_of(importance, "attention_low", 0.5, 1.0, seed, masked_sample_share=0.5)
        assert sorted(mask.sum(dim=1).tolist()) == [0] * 5 + [8] * 5
    alone = [
        bool(mask_of(importance[:1], "attention_low", 0.5, 1.0, seed, masked_sample_share=0.3).any())
        for seed in range(400)
    ]
    assert abs(np.mean(alone) - 0.3) < 5 * math.sqrt(0.21 / 400)
    assert not mask_of(importance, "attention_low", 0.5, 1.0, masked_sample_share=0.0).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_generator_decides_and_nothing_else(strategy: str) -> None:
    importance = random_importance(6, 49, 4)
    state = torch.random.get_rng_state()
    first = mask_of(importance, strategy, 0.5, 0.5, 7)
    assert torch.equal(first, mask_of(importance, strategy, 0.5, 0.5, 7))
    assert torch.equal(state, torch.random.get_rng_state())
    if strategy == "none":
        assert not first.any()
    else:
        assert not torch.equal(first, mask_of(importance, strategy, 0.5, 0.5, 8))
    if strategy not in ATTENTION_STRATEGIES:
        assert torch.equal(first, mask_of(torch.zeros_like(importance), strategy, 0.5, 0.5, 7))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_devices_agree(strategy: str) -> None:
    importance = random_importance(6, 49, 4, levels=5)
    mask = mask_of(importance.cuda(), strategy, 0.5, 0.5, 7)
    assert mask.is_cuda
    assert torch.equal(mask.cpu(), mask_of(importance, strategy, 0.5, 0.5, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "atention_low"}, "did you mean 'attention_low'"),
        ({"eligible_fraction": 1.5}, r"eligible_fraction is 1\.5: give a number from 0 to 1"),
        ({"mask_probability": -0.1}, r"mask_probability is -0\.1"),
        ({"mask_probability": math.nan}, "mask_probability is nan"),
        ({"masked_sample_share": 2.0}, r"masked_sample_share is 2\.0"),
        ({"importance": torch.zeros(3)}, r"importance has shape \(3,\)"),
        ({"strategy": "block", "importance": torch.zeros(2, 12)}, r"12 tokens are not a square; give grid=\(h, w\)"),
        ({"strategy": "block", "grid": (3, 3)}, "grid 3x3 does not hold 16 tokens"),
    ],
)
def test_bad_values_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    arguments = {
        "importance": torch.zeros(2, 16),
        "strategy": "attention_low",
        "eligible_fraction": 0.5,
        "mask_probability": 0.3,
        "generator": generator("bad"),
    } | change
    with pytest.raises(UsageError, match=message) as caught:
        attention_mask(arguments.pop("importance"), **arguments)
    assert "\n" not in str(caught.value)
