"""Which images are right: the same after a row of results, and nothing where that is damaged."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.runtime.answers import Answers


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_answers_come_back_from_their_row(pairs: list[tuple[bool, bool]]) -> None:
    right, others = zip(*pairs, strict=True)
    names = [f"images/{number}.png" for number in range(len(right))]
    answers = Answers.of(right, names)
    row = answers.row()
    assert Answers.from_row(row) == answers
    packed = np.frombuffer(base64.b64decode(row["bits"]), dtype=np.uint8)
    np.testing.assert_array_equal(np.unpackbits(packed)[: row["images"]], right)
    assert answers.percent == pytest.approx(100 * sum(right) / len(right), abs=1e-5)
    other = Answers.of(others, [f"elsewhere/{name}" for name in names])
    assert answers.same_images(other)
    assert answers.only(other) == sum(a and not b for a, b in pairs)


DAMAGES: list[dict[str, Any]] = [
    {"bits": ""},
    {"bits": "AAAA"},
    {"bits": "\u00e9"},
    {"bits": 7},
    {"bits": "/w=="},  # a bit of an image that is not there
    {"images": 0},
    {"images": True},
    {"images": 1 << 40},
    {"names": None},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_rows_are_nothing(damage: dict[str, Any]) -> None:
    row = Answers.of([True, False, True], ["a", "b", "c"]).row()
    assert Answers.from_row(row) is not None
    assert Answers.from_row({**row, **damage}) is None


@pytest.mark.parametrize("row", [None, "1f", [], {}])
def test_other_things_are_nothing(row: object) -> None:
    assert Answers.from_row(row) is None
