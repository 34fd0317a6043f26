"""Results of one task under several protocols: what tells them from each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mst.report.reading import Row

SAID_ELSEWHERE = {"labels.train_share", "labels.train_per_class", "seeds"}
WORDS = {"size": "{} px", "pool": "{}", "k": "k = {}"}
"""Settings, nested ones by their last name, that need no name or another one."""
MOST = 3
"""Settings that a title has room for."""


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping: `a.b` for setting b of a."""
    if not isinstance(value, Mapping):
        return {name: value} if name else {}
    parts = [flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def in_words(value: Any) -> str:
    """Return a setting's value: `352 x 480` for a list of numbers, `max min` for one of words."""
    if isinstance(value, list):
        return (" " if any(isinstance(item, str) for item in value) else " x ").join(map(str, value))
    return str(value)


def variants(rows: Sequence[Row]) -> dict[str, str]:
    """Return what tells each protocol from the others of its task, in words: `128 x 128 px, max min`.

    Args:
        rows: results of one task; of the same data, or it is said elsewhere which.

    Returns:
        By `protocol_key` of a row; "" where all have one protocol.
    """
    protocols = {protocol_key(row): flat(row.get("protocol")) for row in rows}
    names = dict.fromkeys(name for protocol in protocols.values() for name in protocol)
    unlike = [
        name
        for name in names
        if name not in SAID_ELSEWHERE and len({json.dumps(each.get(name)) for each in protocols.values()}) > 1
    ]
    unlike.sort(key=lambda name: name.rpartition(".")[2] not in WORDS)
    return {
        key: ", ".join(_said(name, protocol[name]) for name in unlike[:MOST] if protocol.get(name) is not None)
        for key, protocol in protocols.items()
    }


def protocol_key(row: Row) -> str:
    """Return a row's protocol as text."""
    return json.dumps(row.get("protocol"), sort_keys=True)


def _said(name: str, value: Any) -> str:
    last = name.rpartition(".")[2]
    return WORDS.get(last, last.replace("_", " ") + " {}").format(in_words(value))
