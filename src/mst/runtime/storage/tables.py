"""Tables as text: CSV that every reader takes apart as it was put together."""

from __future__ import annotations

import re
from collections.abc import Iterable

_QUOTED = re.compile(r'[,"\r\n]')


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV (RFC 4180 with line feeds); an empty cell for None.

    Python's own writer leaves a carriage return without quotes where rows end in a line feed, and a name that has one
    then becomes two rows.
    """
    return "".join(",".join(map(_cell, row)) + "\n" for row in rows)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
