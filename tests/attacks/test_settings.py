"""Settings at their extremes: a plan and some steps, or one line, with bounded time and memory."""

from __future__ import annotations

import pytest

from attacks.settings import attack
from attacks.watch import watch


def test_settings() -> None:
    found = watch(attack, range(40))
    print(f"\nsettings: {found}")
    assert not found.findings, "\n".join(found.findings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(5))
def test_three_thousand_settings(part: int) -> None:
    found = watch(attack, range(1000 + 600 * part, 1600 + 600 * part))
    print(f"\nsettings: {found}")
    assert not found.findings, "\n".join(found.findings)
