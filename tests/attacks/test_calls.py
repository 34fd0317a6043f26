"""Random command lines: an exit status of 0, 1 or 2, and one line of error, never a traceback."""

from __future__ import annotations

import pytest

from attacks.calls import attack
from attacks.watch import watch


def test_command_lines() -> None:
    found = watch(attack, range(60))
    print(f"\ncommand lines: {found}")
    assert not found.findings, "\n".join(found.findings)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(5))
def test_five_thousand_command_lines(part: int) -> None:
    found = watch(attack, range(1000 + 1000 * part, 2000 + 1000 * part))
    print(f"\ncommand lines: {found}")
    assert not found.findings, "\n".join(found.findings)
