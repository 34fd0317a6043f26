"""Names of files that can be printed anywhere: invisible characters and bytes that are not UTF-8 are escaped."""

from __future__ import annotations

import os
import unicodedata


def shown(name: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    r"""Return a name on one line with every character of it visible.

    Bytes that are not UTF-8, control characters, line ends, marks of direction, unusual spaces and other invisible
    characters appear as `\xff`, `\n` or `\u202e`; an ordinary space at the beginning or the end appears as `\x20`.
    """
    try:
        text = os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, out of JSON: no file can be called so
        text = os.fsdecode(name)
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" ")) if inner else len(text)
    ends = "\\x20" * start, "\\x20" * (len(text) - start - len(inner))
    return ends[0] + "".join(map(_character, inner)) + ends[1]


def _character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as `os.fsdecode` keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    visible = character == " " or unicodedata.category(character)[0] not in "CZ"
    return character if visible else character.encode("unicode_escape", "surrogatepass").decode()
