"""The versions that `make versions` installs."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from package.versions import SHOWN, declared, lowest, table


def test_every_dependency_has_one_lower_bound() -> None:
    users, tools = declared()
    assert {"torch", "torchvision", "timm", "numpy", "transformers"} <= {wanted.name for wanted in users}
    assert {"pytest", "hypothesis"} <= {wanted.name for wanted in tools}
    for wanted in users:
        assert lowest(wanted).startswith(f"{wanted.name}==")


@pytest.mark.parametrize("text", ["numpy", "numpy<3", "numpy>=1,>=2"])
def test_another_bound_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="one lower bound"):
        lowest(Requirement(text))


def test_table() -> None:
    row = {"which": "lowest", "versions": {"python": "3.11.7", "torch": "2.6.0"}, "said": "9 passed in 1s"}
    heads, _, cells = table([row]).splitlines()
    assert heads.count("|") == cells.count("|") == len(SHOWN) + 4
    assert cells.startswith("| lowest | 3.11.7 | 2.6.0 | - |")
