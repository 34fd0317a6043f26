"""Damaged files of runs, checkpoints, models, features, lists and recipes: one line, or a page, never a traceback."""

from __future__ import annotations

import pytest

from attacks.watch import watch

pytest.importorskip("torchvision.models.detection")
from attacks.runs import attack


def test_damaged_files() -> None:
    found = watch(attack, range(15))
    print(f"\ndamaged files: {found}")
    assert not found.findings, "\n".join(found.findings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_damaged_files(part: int) -> None:
    found = watch(attack, range(1000 + 1000 * part, 2000 + 1000 * part))
    print(f"\ndamaged files: {found}")
    assert not found.findings, "\n".join(found.findings)
