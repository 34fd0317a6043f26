"""Every option of every command that takes a number, at extremes: a record, or one line; never anything else."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from commands.test_path_options import RECORDS
from mst.errors import UsageError
from mst.runtime.limits import LARGEST, MOST, MOST_OF, SEEDS
from mst.terminal import parsing
from mst.terminal.parsing import flag, parse_words

EXTREMES = ("-1", "0", "1", str(2**31), str(2**63), "1e308", "-1e308", "1e-308", "nan", "inf", "1" * 400, "x" * 300, "")
REFUSED = ("nan", "inf", "1e308", "-1e308", "1e-308", "1" * 400, "x" * 300, "")


def numbers(hint: Any) -> set[Any]:
    """Return int or float where a type is a number, or holds some."""
    return {hint} & {int, float} | {kind for part in get_args(hint) for kind in numbers(part)}


ONE_COMMAND_EACH = {
    id(leaf): (prog, leaf.name, len(get_args(hint)) if get_args(hint) in {(int, int), (float, float)} else 1)
    for prog, kind in sorted(RECORDS.items())
    for leaf, hint in parsing._leaves(kind)
    if numbers(hint)
}
"""Options that several commands have from one record are tried in one of them."""
NUMBERS = sorted(ONE_COMMAND_EACH.values())


def parsed(prog: str, name: str, count: int, word: str) -> Any:
    """Return the record of a command with this option and what it needs, or the one line."""
    kind = RECORDS[prog]
    needed = [flag(leaf.name) for leaf, _ in parsing._leaves(kind) if parsing._required(leaf)]
    try:
        return parse_words(
            kind, [word for option in needed for word in (option, "x")] + [flag(name), *[word] * count], prog=prog
        )
    except UsageError as refused:
        return str(refused)


@pytest.mark.parametrize(("prog", "name", "count"), NUMBERS)
def test_extremes_of_options(prog: str, name: str, count: int) -> None:
    for word in EXTREMES:
        found = parsed(prog, name, count, word)
        if isinstance(found, str):
            assert "\n" not in found
            assert len(found) < 1000
            assert flag(name) in found or "unexpected word" in found or "unknown option" in found, found
            continue
        assert word not in REFUSED
        numbers = [value for leaf_name, value in values(found) if leaf_name == name]
        flat = [item for value in numbers for item in (value if isinstance(value, tuple) else (value,))]
        limit = MOST_OF.get(name, SEEDS if name == "seed" else LARGEST)
        assert all(item is None or abs(item) <= limit for item in flat)


def values(record: Any) -> list[tuple[str, Any]]:
    """Return the fields of a record, those of its groups in place of the groups."""
    found = []
    for name, value in vars(record).items():
        found += values(value) if hasattr(value, "__dataclass_fields__") else [(name, value)]
    return found


def test_limits_are_of_options_that_there_are() -> None:
    assert len(NUMBERS) > 60
    assert set(MOST_OF) <= {name for _, name, _ in NUMBERS}
    assert MOST < SEEDS
