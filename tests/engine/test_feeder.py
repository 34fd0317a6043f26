"""The feeder gives what the source gives, in its order, and reads as far ahead as it was told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mst.engine.feeder import Feeder
from mst.runtime.signals import GracefulStop


class Source:
    """Numbers from 0, and how many were taken."""

    def __init__(self, count: int = 100, *, breaks: int | None = None) -> None:
        self.count, self.breaks = count, breaks
        self.taken = 0
        self.closed = threading.Event()

    def __call__(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                if number == self.breaks:
                    raise ValueError(f"number {number}")
                self.taken += 1
                yield number
        finally:
            self.closed.set()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_step_is_taken_before_it_is_asked_for_where_wanted(ahead: int) -> None:
    source, stop = Source(), GracefulStop("")
    feeder = Feeder(source, ahead=ahead)
    for step in range(3):
        assert feeder.take(2, stop) == [2 * step, 2 * step + 1]
        wait_for(lambda: source.taken == 2 * (step + 1 + ahead))  # noqa: B023
    time.sleep(0.05)
    assert source.taken == 2 * (3 + ahead)
    feeder.close()
    assert source.closed.is_set()


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_the_end_and_an_error_come_in_their_turn(ahead: int) -> None:
    stop = GracefulStop("")
    feeder = Feeder(Source(5), ahead=ahead)
    assert [feeder.take(2, stop) for _ in range(4)] == [[0, 1], [2, 3], [4], []]
    feeder.close()
    feeder = Feeder(Source(breaks=4), ahead=ahead)
    assert [feeder.take(2, stop) for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="number 4"):
        feeder.take(2, stop)
    feeder.close()
