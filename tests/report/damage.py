"""Damages to a file of JSON, drawn from a seed: as disks, editors and other programs make them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**400, 10**18, -(2**63), 1e308, 5e-324, "", "x", "\ud800", "\x00\x1b[31m", "NaN", "é" * 500),
    *([], {}, [[]], {"a": {}}, [1, "2", None], [10**30, -1], "[/red]", "<script>", "a\nb", [0, 0], [1.5]),
)
WORDS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, '"\\ud83d"', "[" * 3000 + "]" * 3000, '{"a":' * 900 + "1")


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a damaged copy."""
    kind: Callable[[bytes, random.Random], bytes] = draw.choice(
        (_bits, _bits, _cut, _other, _other, _other, _words, _binary, _doubled, _without)
    )
    return kind(content, draw)


def _bits(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _words(content: bytes, draw: random.Random) -> bytes:
    text = content.decode()
    places = [place for place, letter in enumerate(text) if letter == ":"]
    place = draw.choice(places or [-1]) + 1
    end = min((at for at in (text.find(",", place), text.find("}", place)) if at >= 0), default=place)
    return (text[:place] + draw.choice(WORDS) + text[end:]).encode()


def _binary(content: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(0, 400)) if draw.random() < 0.5 else content + draw.randbytes(30) + content


def _doubled(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[place:] + content[:place]


def _other(content: bytes, draw: random.Random) -> bytes:
    """Put another value in some places of one of its JSON values."""

    def change(value: Any) -> None:
        for _ in range(draw.randint(1, 4)):
            _replace(value, draw)

    return _changed(content, draw, change)


def _without(content: bytes, draw: random.Random) -> bytes:
    """Leave a key out."""

    def change(value: Any) -> None:
        if isinstance(value, dict) and value:
            del value[draw.choice(list(value))]

    return _changed(content, draw, change)


def _changed(content: bytes, draw: random.Random, change: Callable[[Any], None]) -> bytes:
    """Change the JSON value, or one of the lines' values."""
    try:
        value = json.loads(content)
    except ValueError:
        lines = content.decode().splitlines()
        number = draw.randrange(len(lines))
        value = json.loads(lines[number])
        change(value)
        return "\n".join([*lines[:number], json.dumps(value), *lines[number + 1 :], ""]).encode()
    change(value)
    return json.dumps(value).encode()


def _replace(value: Any, draw: random.Random) -> None:
    while isinstance(value, dict | list) and value:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        if not isinstance(value[key], dict | list) or not value[key] or draw.random() < 0.2:
            value[key] = copy.deepcopy(draw.choice(ODD))
            return
        value = value[key]
