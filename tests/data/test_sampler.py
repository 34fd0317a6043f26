from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.data.order.epochs import EpochOrder
from mst.data.sampler import (
    Microbatch,
    Share,
    batch_indices,
    microbatches,
    position_of,
    sample_order,
    steps_per_epoch,
)
from mst.errors import DataError
from mst.runtime.seeding import generator

sizes = st.integers(1, 300)
seeds = st.integers(0, 2**40)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, epoch=st.integers(0, 10**6), size=sizes)
def test_the_order_is_a_permutation_and_a_pure_function(seed: int, epoch: int, size: int) -> None:
    order = sample_order(seed, epoch, size)
    torch.randn(3)  # global random state has no say
    assert torch.equal(order, sample_order(seed, epoch, size))
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(size))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, size=sizes, data=st.data())
def test_the_batches_of_an_epoch_are_its_order_cut(seed: int, size: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, size))
    epoch = data.draw(st.integers(0, 5))
    steps = steps_per_epoch(size, batch)
    whole = torch.cat([batch_indices(seed, epoch * steps + i, batch, size) for i in range(steps)])
    assert torch.equal(whole, sample_order(seed, epoch, size)[: steps * batch])
    assert size - len(whole) < batch


@settings(max_examples=50, deadline=None)
@given(processes=st.integers(1, 9), accumulate=st.integers(1, 9), data=st.data())
def test_shares_and_microbatches_make_the_batch(processes: int, accumulate: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(processes * accumulate, 300))
    shares = [Share(rank, processes) for rank in range(processes)]
    parts = [share.microbatches(batch, accumulate) for share in shares]
    assert [place for part in range(accumulate) for own in parts for place in own[part]] == list(range(batch))
    for rank, own in enumerate(parts):
        assert len(own) == accumulate
        for number, places in enumerate(own):
            whole = range(batch * number // accumulate, batch * (number + 1) // accumulate)
            assert places == whole[len(whole) * rank // processes : len(whole) * (rank + 1) // processes]
            assert 1 <= len(places) <= -(-batch // (processes * accumulate)) + 1


@settings(max_examples=50, deadline=None)
@given(lanes=st.sampled_from([1, 2, 4, 8]), accumulate=st.integers(1, 3), data=st.data())
def test_lanes_are_the_same_for_any_number_of_processes(lanes: int, accumulate: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(lanes * accumulate, 100))
    alone = Share(lanes=lanes).microbatches(batch, accumulate)
    assert [place for part in alone for place in part] == list(range(batch))
    assert len(alone) == lanes * accumulate
    for processes in (size for size in (1, 2, 4, 8) if size <= lanes):
        shares = [Share(rank, processes, lanes) for rank in range(processes)]
        assert [part for share in shares for part in share.microbatches(batch, accumulate)] == alone


def test_epochs_and_seeds_differ() -> None:
    orders = [sample_order(seed, epoch, 50) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order.tolist()) for order in orders}) == 9


def test_position_of() -> None:
    assert [position_of(step, 4, 3) for step in (0, 2, 3, 7)] == [(0, 0), (0, 8), (1, 0), (2, 4)]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"a batch of 11 images is larger than the data set \(10\).*--train.batch-size"):
        steps_per_epoch(10, 11)


def test_microbatches_of_every_step() -> None:
    assert list(microbatches(range(3, 5), 5, 2)) == [
        Microbatch(3, 0, range(2)),
        Microbatch(3, 1, range(2, 5)),
        Microbatch(4, 0, range(2)),
        Microbatch(4, 1, range(2, 5)),
    ]


@settings(deadline=None)
@given(size=st.integers(1, 7), place=st.integers(0, 30), wanted=st.integers(0, 20), seed=st.integers(0, 99))
def test_each_place_is_that_of_its_epochs_order(size: int, place: int, wanted: int, seed: int) -> None:
    order = EpochOrder(size, seed, purpose="some-order")
    for each in range(place, place + wanted):  # the definition: an epoch's whole order for each place
        epoch, position = divmod(each, size)
        assert order.image(each) == sample_order(seed, epoch, size, purpose="some-order")[position]


def test_an_order_is_drawn_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(*names: int | str) -> torch.Generator:
        drawn.append(names)
        return generator(*names)

    monkeypatch.setattr("mst.data.sampler.generator", counted)
    order = EpochOrder(6, 0, purpose="x")
    assert sorted(order.image(place) for place in range(6)) == list(range(6))
    assert len([order.image(place) for place in range(4, 18)]) == 14
    assert drawn == [(0, "x", epoch) for epoch in (0, 1, 2)]
