"""Paths as users write them: `~` expanded as a shell does, refused where no file can have the name, else byte-exact."""

from __future__ import annotations

import difflib
import os
import re
from itertools import islice
from pathlib import Path
from typing import Annotated

from mst.errors import UsageError

PATH, SOURCE = "a path", "a path or a name"
"""Marks of the types below, by which the command line finds the options to expand."""
PathText = Annotated[str, PATH]
"""The type of an option that names a file or folder."""
SourceText = Annotated[str, SOURCE]
"""The type of an option that names a file, a folder or something else: `timm:NAME`, `random:FOLDER`, `NAME=FILE`."""
PREFIX = re.compile(r"(?:random:)?(?:[\w.]+=)?(?=~)")
"""What may stand before the `~` of a source."""

ADDRESS = re.compile(r"hf:|[A-Za-z][A-Za-z0-9+.-]+://")
"""How a source begins that is no path: a Hugging Face data set, or a file or folder on another machine."""
CLOSE_ENOUGH, MOST_COMPARED = 0.75, 10_000
"""Smallest similarity (difflib's ratio) of a file's name worth suggesting, and names that are compared at most."""


def is_address(text: str) -> bool:
    """Return whether a source is no path but `hf:NAME`, `s3://...`, `gs://...` or `https://...`."""
    return ADDRESS.match(text) is not None


def user_path(value: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Path:
    """Return the path that a user means. Applied twice, it gives the same.

    Args:
        value: text as typed, or a path; a name that is not UTF-8 keeps its bytes (as `os.fsdecode` gives it). A file
            that is called `~` is written `./~`.

    Raises:
        UsageError: it is empty, no text, no name that a file can have, or `~` of a user without a home folder.
    """
    try:
        text = os.fsdecode(value)
        os.fsencode(text)
    except TypeError:
        raise UsageError(f"{value!r} is no path: give a text or a pathlib.Path") from None
    except UnicodeEncodeError:
        raise UsageError(f"{value!r} is no path: it holds characters that no file name can have") from None
    if not text:
        raise UsageError("a path is empty (an unset variable?): give a path, or leave it away")
    if "\0" in text:
        raise UsageError(f"{text!r} is no path: it holds a NUL character")
    if text.startswith("~"):
        return _at_home(text)
    # `./~` is a file of this name; as a path it is `~`, which the next call would expand
    return Path(text if not str(Path(text)).startswith("~") else os.path.abspath(text))


def user_place(value: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """Return where images are as text: an address as it is, else the path that a user means.

    Raises:
        UsageError: as `user_path`.
    """
    path = user_path(value)
    return value if isinstance(value, str) and is_address(value) else str(path)


def absolute_place(value: str | os.PathLike[str]) -> str:
    """Return a place that is the same from any working folder.

    Raises:
        UsageError: as `user_path`.
    """
    place = user_place(value)
    return place if is_address(place) else os.path.abspath(place)


def _at_home(text: str) -> Path:
    """Expand `~` and `~user`.

    Raises:
        UsageError: there is no such home.
    """
    expanded = os.path.expanduser(text)
    who = text.partition("/")[0]
    if expanded.startswith("~") or (who == "~" and os.environ.get("HOME") == ""):
        why = "HOME is not set and this user has no home folder" if who == "~" else f"there is no user {who[1:]}"
        raise UsageError(f"{text}: {why}: write the whole path (a file of this name is ./{text})")
    return Path(expanded)


def user_source(value: str | os.PathLike[str]) -> str:
    """Return a source with the `~` of its path expanded: `random:~/runs/a` too; names such as `timm:NAME` stay.

    Raises:
        UsageError: as `user_path`.
    """
    if not isinstance(value, str):
        return str(user_path(value))
    prefix = PREFIX.match(value)
    if prefix is not None:
        return prefix[0] + str(user_path(value[prefix.end() :]))
    user_path(value)  # refuses what no path can be
    return value


def like_named(path: str | os.PathLike[str]) -> str:
    """Return ` (did you mean cells?)`: what is named most like the first part of a path that is missing; or nothing."""
    here = Path(path)
    gone = next((part for part in reversed([here, *here.parents]) if not os.path.lexists(part)), None)
    if gone is None:  # a link that leads nowhere
        return ""
    try:
        with os.scandir(gone.parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_COMPARED) if entry.name.isprintable()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(gone.name, names, n=1, cutoff=CLOSE_ENOUGH)
    return f" (did you mean {gone.parent / close[0]}?)" if close else ""
