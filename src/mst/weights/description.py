"""The JSON file beside weights: read up to a limit of size; a value is used only if its type and size are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 24
NAME_LENGTH = 1000
SHOWN = 40


class BadDescription(ValueError):
    """A description has an impossible value; the message names the key, the value and the limit."""


def read_description(path: Path) -> dict[str, Any]:
    """Return the values of a JSON object.

    Raises:
        BadDescription: it is none, or far too large for one.
        OSError: it cannot be read.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadDescription(f"it has {size} bytes, a description has at most {MOST_BYTES}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "too many brackets in one another" if isinstance(error, RecursionError) else str(error)
        raise BadDescription(f"it is no JSON ({reason})") from error
    if not isinstance(values, dict):
        raise BadDescription(f"it holds {type(values).__name__} instead of values by name")
    return values


def part(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the values by name at `key`."""
    found = values.get(key)
    if not isinstance(found, dict):
        raise BadDescription(f"{key} is {shown(found)}: must be values by name")
    return found


def whole(values: Mapping[str, Any], key: str, *, least: int = 1, most: int) -> int:
    """Return the whole number at `key`."""
    return _whole(values.get(key), key, least, most)


def wholes(values: Mapping[str, Any], key: str, *, most: int, least: int = 1, count: int = 0) -> tuple[int, ...]:
    """Return the list of whole numbers at `key`: `count` of them, or at least one."""
    return tuple(_whole(item, key, least, most) for item in _list(values, key, count))


def numbers(values: Mapping[str, Any], key: str, *, count: int, positive: bool = False) -> tuple[float, ...]:
    """Return the list of `count` finite numbers at `key`; with `positive`, above 0."""
    found = _list(values, key, count)
    for item in found:
        fits = isinstance(item, int | float) and type(item) is not bool and abs(item) < 1e30
        if not fits or (positive and item <= 0):
            raise BadDescription(f"{key} has {shown(item)}: must be finite numbers{' above 0' if positive else ''}")
    return tuple(float(item) for item in found)


def words(values: Mapping[str, Any], key: str, *, most: int) -> tuple[str, ...]:
    """Return the list of names at `key`, at least one and at most `most`."""
    found = _list(values, key)
    if len(found) > most or not all(isinstance(item, str) and len(item) <= NAME_LENGTH for item in found):
        raise BadDescription(f"{key} is {shown(found)}: must be at most {most} names")
    return tuple(found)


def word(values: Mapping[str, Any], key: str) -> str:
    """Return the name at `key`."""
    found = values.get(key)
    if not isinstance(found, str) or not 0 < len(found) <= NAME_LENGTH:
        raise BadDescription(f"{key} is {shown(found)}: must be a name")
    return found


def shown(value: object) -> str:
    """Return a value as one short line."""
    text = "missing" if value is None else ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _list(values: Mapping[str, Any], key: str, count: int = 0) -> list[Any]:
    found = values.get(key)
    if not isinstance(found, list | tuple) or not found or (count and len(found) != count):
        raise BadDescription(f"{key} is {shown(found)}: must be a list of {count or 'at least one'}")
    return list(found)


def _whole(value: object, key: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadDescription(f"{key} is {shown(value)}: must be a whole number from {least} to {most}")
    return value
