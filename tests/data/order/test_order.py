"""Orders of an epoch: each image once, places by themselves, weights exact, and how well each order shuffles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.data.order import epochs, shards
from mst.data.order.epochs import ComputedOrder, EpochOrder, epoch_samples
from mst.data.order.permutation import Permutation
from mst.data.order.shards import ShardsOrder
from mst.data.sampler import sample_order
from mst.data.sources.arrays import MemoryImages
from mst.data.sources.mixed import MixedImages
from mst.errors import UsageError
from reference.permutation import SlowPermutation


def everything(order: object, size: int) -> np.ndarray:
    return order.of(np.arange(size))  # type: ignore[attr-defined, no-any-return]


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 2**40), seed=st.integers(0, 9), data=st.data())
def test_the_permutation_is_its_definition(size: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    slow = SlowPermutation(size, seed, "x")
    found = Permutation(size, seed, "x").of(np.array(places))
    assert found.tolist() == [slow.forward(place) for place in places]
    assert [slow.backward(image) for image in found.tolist()] == places


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000, 65537])
def test_each_image_once(size: int) -> None:
    assert np.array_equal(np.sort(everything(Permutation(size, 3, "y"), size)), np.arange(size))


def test_a_thousand_million_images() -> None:
    """Sampled places of 10^9: no image twice, and as even as chance (chi-square of 100 bins, 99 degrees)."""
    size, sample = 10**9, 100_000
    places = np.random.default_rng(0).choice(size, sample, replace=False)
    order = Permutation(size, 0, "order", 0)
    found = order.of(places)
    assert len(np.unique(found)) == sample
    assert 0 <= found.min() <= found.max() < size
    counts = np.bincount(found * 100 // size, minlength=100)
    assert 60 < ((counts - sample / 100) ** 2 / (sample / 100)).sum() < 150  # 99 +- 3.6 deviations
    neighbours = order.of(np.arange(sample))
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(places, found)[0, 1]) < 0.015
    assert (order.of(places) != Permutation(size, 0, "order", 1).of(places)).mean() > 0.999


def test_small_permutations_are_uniform() -> None:
    counts = Counter(tuple(everything(Permutation(4, seed), 4).tolist()) for seed in range(4800))
    assert len(counts) == 24
    assert max(counts.values()) < 290
    assert min(counts.values()) > 120


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
    window=st.sampled_from([1, 7, 64, 4096]),
)
def test_the_order_by_shards_has_each_sample_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "WINDOW", window)
        size = sum(sizes)
        order = ShardsOrder(np.cumsum(sizes), seed, epoch)
        whole = everything(order, size)
        assert np.array_equal(np.sort(whole), np.arange(size))
        for place in range(0, size, 5):  # each place by itself, as a resumed run asks for it
            again = ShardsOrder(np.cumsum(sizes), seed, epoch)
            assert again.of(np.array([place])).tolist() == [whole[place]]


def test_few_shards_are_in_use_at_a_time() -> None:
    size, count = 200_000, 400
    order = everything(ShardsOrder(np.arange(500, size + 1, size // count), 0, 0), size)
    for first in range(0, size - 4096, 4096):
        assert len(np.unique(order[first : first + 4096] // 500)) <= 2 * shards.LANES + 1
    places = [np.flatnonzero(order // 500 == shard) for shard in range(0, count, 37)]
    assert max(found.max() - found.min() for found in places) < 500 * shards.LANES + 2 * 4096 + 500 * shards.LANES


def shuffling(order: np.ndarray) -> tuple[float, float]:
    """Mean displacement in parts of that of chance (a third), and correlation of neighbours."""
    size = len(order)
    return float(np.abs(order - np.arange(size)).mean() / (size / 3)), float(np.corrcoef(order[:-1], order[1:])[0, 1])


def test_how_well_each_order_shuffles() -> None:
    """What docs/data.md shows."""
    size = 100_000
    whole = [shuffling(sample_order(seed, 0, size).numpy()) for seed in range(4)]
    computed = [shuffling(everything(Permutation(size, seed, "order", 0), size)) for seed in range(4)]
    by_shards = [
        shuffling(everything(ShardsOrder(np.arange(1000, size + 1, 1000), seed, 0), size)) for seed in range(4)
    ]
    for found, displacement, correlation in ((whole, 0.02, 0.01), (computed, 0.02, 0.01), (by_shards, 0.3, 0.25)):
        assert np.abs(np.mean([one for one, _ in found]) - 1) < displacement
        assert np.abs([one for _, one in found]).max() < correlation


def images(count: int) -> MemoryImages:
    return MemoryImages.of([np.zeros((1, 1, 3), np.uint8)] * count)


def mixed(*parts: tuple[int, float]) -> MixedImages:
    return MixedImages([images(count) for count, _ in parts], [weight for _, weight in parts])


def shown(source: MixedImages, epoch: int, **options: str) -> list[int]:
    order = EpochOrder(source, 5, **options)  # type: ignore[arg-type]
    return [int(order.of(epoch)[place]) for place in range(order.size)]


def test_whole_weights_show_each_image_so_often() -> None:
    source = mixed((10, 1.0), (4, 3.0), (7, 2.0))
    assert epoch_samples(source) == 10 + 12 + 14
    for kind in ("global", "shards"):
        for epoch in (0, 3):
            counts = Counter(shown(source, epoch, kind=kind))
            assert [counts[image] for image in range(21)] == [1] * 10 + [3] * 4 + [2] * 7


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 20), weight=st.floats(0.05, 3.5), numbers=st.integers(1, 7))
def test_other_weights_are_exact_over_epochs(count: int, weight: float, numbers: int) -> None:
    source = mixed((3, 1.0), (count, weight))
    each = epoch_samples(source) - 3
    assert each == max(1, round(count * weight))
    counts = Counter(image for epoch in range(numbers) for image in shown(source, epoch))
    assert [counts[image] for image in range(3)] == [numbers] * 3
    found = [counts[image] for image in range(3, 3 + count)]
    assert sum(found) == numbers * each
    assert max(found) - min(found) <= 1


def test_a_part_of_a_source_is_another_in_each_epoch() -> None:
    source = mixed((1, 1.0), (100, 0.5))
    first, second, third = ({*shown(source, epoch)} - {0} for epoch in range(3))
    assert not first & second
    assert first | second == {*range(1, 101)}
    assert third not in (first, second)
    assert sorted(first) != list(range(1, 51))


def test_other_weights_are_refused_by_shards() -> None:
    with pytest.raises(UsageError, match=r"a weight of 0.5 with --data.order shards"):
        EpochOrder(mixed((4, 0.5), (4, 1.0)), 0, kind="shards")


def test_few_images_are_listed_and_many_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = EpochOrder(images(1000), 7).of(2)
    assert isinstance(listed, torch.Tensor)
    assert torch.equal(listed, sample_order(7, 2, 1000))
    monkeypatch.setattr(epochs, "LISTED", 999)
    order = EpochOrder(images(1000), 7)
    computed = order.of(2)
    assert isinstance(computed, ComputedOrder)
    one_by_one = [computed[place] for place in (*range(999, -1, -3), *range(1000))][-1000:]
    assert sorted(one_by_one) == list(range(1000))
    assert order.span(2, 250, 300).tolist() == one_by_one[250:300]
    assert order.span(2, 990, 2000).tolist() == one_by_one[990:]
    assert EpochOrder(1000, 7).image(2345) == order.of(2)[345]


def test_an_order_of_many_needs_no_memory() -> None:
    order = EpochOrder(10**9, 0)
    assert len({order.image(place) for place in range(0, 5 * 10**9, 10**8 + 7)}) > 45
