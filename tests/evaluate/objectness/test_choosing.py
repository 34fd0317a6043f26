"""The cut between patch tokens: against its slow definition, by both solvers, and where there is nothing to cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mst.errors import UsageError
from mst.evaluate.objectness import choosing
from mst.evaluate.objectness.choosing import by_cut
from reference.spectral import eigenvalues_and_vectors, smaller_side


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), height=st.integers(1, 5), width=st.integers(2, 5), middle=st.floats(0, 3))
def test_a_cut_is_that_of_the_slow_definition(seed: int, height: int, width: int, middle: float) -> None:
    features = np.random.default_rng(seed).standard_normal((height * width, 4)) + middle
    values, vectors = eigenvalues_and_vectors(features)
    # A vector is known only where its value stands alone, and a side only where it is clear of zero.
    assume(len(values) < 3 or values[2] - values[1] > 1e-3)
    assume(values[1] > 1e-3)
    assume(np.abs(vectors[:, 1]).min() > 1e-4)
    choice = by_cut(torch.from_numpy(features), (height, width))
    assert choice.patches.shape == choice.shown.shape == (height, width)
    assert set(np.flatnonzero(choice.patches).tolist()) == smaller_side(features)
    assert (choice.shown.numpy() > 0)[choice.patches].all()
    assert not (choice.shown.numpy() > 0)[~choice.patches].any()


@pytest.mark.parametrize("middle", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_many_patches_are_cut_as_few_are(seed: int, middle: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(seed)
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[4:10, 5:17] = True
    towards = torch.where(inside[..., None], torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])) + middle
    features = (towards + 0.05 * torch.randn(20, 30, 3, generator=draw)).flatten(0, 1)
    lanczos = by_cut(features, (20, 30))
    again = by_cut(features, (20, 30))
    monkeypatch.setattr(choosing, "DENSE", 600)
    dense = by_cut(features, (20, 30))
    assert np.array_equal(lanczos.patches, again.patches)
    assert torch.equal(lanczos.shown, again.shown)
    assert (lanczos.patches != dense.patches).sum() <= 1  # a patch at zero may fall on either side
    assert (dense.patches == inside.numpy()).mean() > 0.95


def test_two_parts_without_affinity_are_told_apart() -> None:
    features = torch.tensor([[0.0, 1.0]] * 7 + [[1.0, 0.0]] * 5)
    assert by_cut(features, (3, 4)).patches.flatten().tolist() == [False] * 7 + [True] * 5


def test_equal_halves_leave_the_first_patch_out() -> None:
    for sign in (1.0, -1.0):
        features = torch.tensor([[sign, 0.1], [sign, 0.1], [0.1, sign], [0.1, sign]])
        assert by_cut(features, (2, 2)).patches.flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("value", [1.0, -3.0])
@pytest.mark.parametrize("count", [1, 6])
def test_where_all_are_alike_all_are_chosen(count: int, value: float) -> None:
    assert by_cut(torch.full((count, 3), value), (1, count)).patches.all()


@pytest.mark.filterwarnings("error")
def test_patches_of_zeros_are_no_object() -> None:
    choice = by_cut(torch.zeros(6, 3), (2, 3))
    assert choice.patches.any()
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 0.0], [0.0, 1.0], [0.1, 0.9], [0.2, 1.0]])
    assert not by_cut(features, (2, 3)).patches[0, 2]


SCALED = {"normal": 1.0, "huge": 1e20, "tiny": 1e-20}


@pytest.mark.parametrize("name", SCALED)
def test_the_scale_of_tokens_changes_nothing(name: str) -> None:
    for count in (40, 600):
        features = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
        expected = by_cut(features, (20, count // 20)).patches
        assert (by_cut(features * SCALED[name], (20, count // 20)).patches != expected).sum() <= 1


@pytest.mark.filterwarnings("error")
def test_many_patches_of_simple_graphs() -> None:
    one, other = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for count in (1, 250):
        features = torch.cat((one.expand(600 - count, 2), other.expand(count, 2)))
        assert by_cut(features, (20, 30)).patches.flatten().tolist() == [False] * (600 - count) + [True] * count
    assert by_cut(torch.zeros(600, 2), (20, 30)).patches.all()
    assert by_cut(torch.ones(600, 2), (20, 30)).patches.all()
    odd = torch.cat((torch.ones(599, 3), torch.tensor([[1.0, 1.0, 1.1]])))
    assert np.flatnonzero(by_cut(odd, (20, 30)).patches).tolist() == [599]


def test_too_many_patches() -> None:
    with pytest.raises(UsageError, match=r"129 x 128 = 16512 patches: --method spectral compares .* at most 16384"):
        by_cut(torch.zeros(129 * 128, 1), (129, 128))
