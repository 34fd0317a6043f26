"""Work shared out to threads: results in order, one compute thread each, errors where they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from mst.runtime.threads import side_by_side


@pytest.fixture
def three_threads() -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(own)


def look(number: int, word: str) -> tuple[int, str, int, str]:
    return number, word, torch.get_num_threads(), threading.current_thread().name


@pytest.mark.usefixtures("three_threads")
def test_results_come_in_order_from_threads_of_their_own() -> None:
    seen = side_by_side(look, range(7), "abcdefg")
    assert [row[:3] for row in seen] == [(number, "abcdefg"[number], 1) for number in range(7)]
    assert threading.current_thread().name not in {row[3] for row in seen}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_one_piece_of_work_stays_with_the_caller() -> None:
    assert side_by_side(look, [5], ["x"]) == [(5, "x", 3, threading.current_thread().name)]
    assert side_by_side(look, [], []) == []


@pytest.mark.usefixtures("three_threads")
def test_an_error_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, [1, 0, 2])
