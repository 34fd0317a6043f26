"""Processes meet in a store that earlier attempts have written to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mst.errors import RunFailure
from mst.parallel.meeting import meet


def client(server: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


def attempt(server: dist.TCPStore, size: int) -> list[dist.PrefixStore]:
    """Let threads meet that stand for processes; the first one comes last."""
    with ThreadPoolExecutor(size) as pool:
        ranks = [pool.submit(meet, client(server), rank, size, seconds=20) for rank in reversed(range(size))]
        return [dist.PrefixStore(rank.result(), client(server)) for rank in reversed(ranks)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_talk_in_one_place(server: dist.TCPStore, size: int) -> None:
    stores = attempt(server, size)
    stores[-1].set("word", "x")
    assert all(store.get("word") == b"x" for store in stores)


def test_nothing_is_left_of_earlier_attempts(server: dist.TCPStore) -> None:
    for size in (3, 2, 4, 1):  # membership changes
        stores = attempt(server, size)
        assert not any(store.check(["address"]) for store in stores)
        stores[-1].set("address", "nobody listens here any more")


def test_a_word_of_the_dead_is_not_taken_for_one_of_the_living(server: dist.TCPStore) -> None:
    server.set("mst/hello/1", "of one that was killed before the first came")
    first, second = attempt(server, 2)
    first.set("word", "x")
    assert second.get("word") == b"x"


def test_who_does_not_come_is_named(server: dist.TCPStore) -> None:
    with pytest.raises(RunFailure, match="rank 1, 2 of 3 has not come within 0 seconds"):
        meet(client(server), 0, 3, seconds=0.2)
    with pytest.raises(RunFailure, match="rank 2 of 3 has waited 1 seconds for the others in vain"):
        meet(client(server), 2, 3, seconds=1)
