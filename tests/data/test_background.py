from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mst.data.background import BackgroundThreads, read_in_threads


@pytest.mark.parametrize("workers", [1, 3])
def test_items_come_in_order_and_are_read_a_bounded_way_ahead(workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    def slow(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return 2 * item

    for number, found in enumerate(read_in_threads(slow, items(), workers, ahead=7)):
        assert found == 2 * number
        assert len(taken) <= number + 1 + 7
    assert number == 49


def test_errors_come_where_their_item_would() -> None:
    def read(item: int) -> int:
        if item == 3:
            raise OSError("three")
        return item

    found = read_in_threads(read, range(9), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(found)
    assert list(found) == []


def test_threads_end_with_their_reader() -> None:
    before = threading.active_count()
    reader = read_in_threads(lambda item: item, range(1000), 3)
    assert next(reader) == 0
    assert threading.active_count() == before + 3
    reader.close()
    assert threading.active_count() == before


def test_what_waits_is_cancelled_and_what_hangs_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr("mst.data.background.CLOSING", 0.05)
    monkeypatch.setattr("mst.data.background.leave_behind", lambda: left.append(True))
    hang = threading.Event()
    pool = BackgroundThreads("test", 2)
    calls = [pool.submit(hang.wait) for _ in range(5)]
    while not all(call.running() for call in calls[:2]):
        time.sleep(0.001)
    started = time.monotonic()
    pool.shutdown(cancel_futures=True)
    assert time.monotonic() - started < 2
    assert left == [True]
    assert [call.cancelled() for call in calls[2:]] == [True] * 3
    hang.set()
    assert [call.result(1) for call in calls[:2]] == [True, True]
