"""Parts of the tokens: against loops over patches; what is refused."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.classification.logistic import LogisticProtocol
from mst.evaluate.common.pooling import Part, Pool, check_pool, part_scales, pooled
from mst.model.tokens import Tokens

SLOW = {"mean": statistics.fmean, "std": statistics.pstdev, "max": max, "min": min}
PARTS: Pool = ("cls", "mean", "std", "max", "min")


@settings(max_examples=50, deadline=None)
@given(
    pool=st.lists(st.sampled_from(PARTS), min_size=1, max_size=5, unique=True),
    patches=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_parts_are_those_of_a_loop_over_patches(pool: list[Part], patches: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    tokens = Tokens(torch.randn(2, 3, generator=draws), torch.randn(2, patches, 3, generator=draws), (1, patches), None)
    found = pooled(tokens, tuple(pool)).view(2, len(pool), 3)
    for image in range(2):
        for place, part in enumerate(pool):
            for number in range(3):
                column = tokens.patches[image, :, number].tolist()
                right = float(tokens.cls[image, number]) if part == "cls" else SLOW[part](column)
                assert float(found[image, place, number]) == pytest.approx(right, abs=1e-6)


def test_each_part_has_its_own_scale() -> None:
    features = torch.randn(50, 2, 2, 3, generator=torch.Generator().manual_seed(0))  # n, b, p, D
    features[:, :, 1] *= 0.01
    scales = part_scales(features.flatten(1), ("cls", "std"), 3).view(2, 2, 3)
    assert scales[:, 0].unique().numel() == scales[:, 1].unique().numel() == 1
    for part in range(2):
        slow = features[:, :, part].flatten(1).std(0, correction=0).square().mean().sqrt()
        torch.testing.assert_close(scales[0, part, 0], slow)


def test_what_is_refused() -> None:
    check_pool(("std",))
    for pool in ((), ("cls", "cls")):
        with pytest.raises(UsageError, match=r"name at least one of cls mean std max min, and each once"):
            check_pool(pool)
        with pytest.raises(UsageError, match="--pool"):
            LinearProtocol(pool=pool)
        with pytest.raises(UsageError, match="--pool"):
            LogisticProtocol(pool=pool)
