"""Text in Markdown: names may hold characters with a meaning in Markdown or HTML, which are escaped."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~&$]")


def text(value: object) -> str:
    r"""Return a value as running text on one line: `a[b]|c` becomes `a\[b\]\|c`."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", " ".join(str(value).split()))


def code(value: object) -> str:
    """Return a value in a code span on one line; it may hold backticks, and stand in a table."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest or not line else ""
    return f"{fence}{space}{line}{space}{fence}"
