"""Damaged masks, annotations and lists: read, or refused in one line, with bounded time and memory."""

from __future__ import annotations

import pytest

from attacks.watch import watch

pytest.importorskip("pycocotools")
from attacks.annotations import attack


def test_damaged_annotations() -> None:
    found = watch(attack, range(200))
    print(f"\ndamaged masks and annotations: {found}")
    assert not found.findings, "\n".join(found.findings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(5))
def test_ten_thousand_damaged_annotations(part: int) -> None:
    found = watch(attack, range(1000 + 2000 * part, 3000 + 2000 * part))
    print(f"\ndamaged masks and annotations: {found}")
    assert not found.findings, "\n".join(found.findings)
