from __future__ import annotations

import os

import pytest

from mst.runtime.names import shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a b.jpg", "a b.jpg"),
        (b"\xff\xfe.jpg", "\\xff\\xfe.jpg"),
        ("ü😀.jpg", "ü😀.jpg"),
        ("b[red].png", "b[red].png"),
        ("a\nb\t.png", "a\\nb\\t.png"),
        ("\u202etxt.jpg", "\\u202etxt.jpg"),
        ("a\u00a0b", "a\\xa0b"),
        (" a ", "\\x20a\\x20"),
        ("  ", "\\x20\\x20"),
        ("", ""),
    ],
)
def test_every_character_shows(name: str | bytes, expected: str) -> None:
    assert shown(name) == expected
    assert shown(os.fsencode(name)) == expected


def test_half_a_character_out_of_json() -> None:
    assert shown("\ud800.png") == "\\ud800.png"
