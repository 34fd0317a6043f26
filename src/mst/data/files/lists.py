"""Text files of paths, one a line, as people and their programs write them."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np

from mst.data.files.kinds import ARRAY, EXTENSIONS, extension, listed_names
from mst.data.files.passed import FIRST, Passed
from mst.errors import DataError, UsageError
from mst.runtime.names import shown

BEGINNINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings they announce."""
LOOKED_AT = 10_000
"""Listed files that are looked for before a run starts; of longer lists an even sample."""
DRIVE = re.compile(rb"[A-Za-z]:[\\/]|\\\\[^\\]")
ADDRESS = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]+://")
LOCAL = b"file://"


@dataclass
class Listed:
    """What a list names.

    Attributes:
        paths: absolute, in the list's order, repeats included.
        folders: positions in `paths` that are folders.
        passed: listed files that do not exist (they stay in `paths`) and those that are no files (they do not).
    """

    paths: list[bytes] = field(default_factory=list)
    folders: set[int] = field(default_factory=set)
    passed: list[Passed] = field(default_factory=list)


def read_list(source: Path) -> Listed:
    """Return what a text file lists: UTF-8, UTF-16 or bytes; any line ends.

    Paths are relative to the list's folder. A line is taken as it is where such a file exists; else without spaces
    around it, without quotes, with `/` for each backslash, with `~` as the home. Empty lines are passed over, and
    those that begin with `#` unless a file has that name.

    Raises:
        UsageError: it cannot be read, is no text, or names places of another system.
        DataError: it lists nothing, or no file that exists.
    """
    base = os.fsencode(source.parent)
    lines = [line for line in text_lines(source) if line.strip()]
    found = [path for line in lines if (path := _path(source, base, line)) is not None]
    if not found:
        raise DataError(f"{shown(source)} lists no paths: one image path per line is expected")
    return _checked(source, found)


def text_lines(source: Path) -> list[bytes]:
    """Return the lines of a text in the file system's encoding."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UsageError(f"{shown(source)} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in BEGINNINGS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content[:2]:  # UTF-16 of ASCII letters, without a mark
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    if encoding == "utf-8":
        content = content.removeprefix(codecs.BOM_UTF8)
    elif encoding is not None:
        try:
            content = content.decode(encoding).encode()
        except UnicodeError:
            content = b"\0"
    if b"\0" in content:
        names = listed_names(EXTENSIONS | {ARRAY})
        raise UsageError(f"{shown(source)} is neither a folder, nor an image ({names}), nor a text file of paths")
    return content.splitlines()


def _path(source: Path, base: bytes, line: bytes) -> bytes | None:
    """Return the absolute path that a line means; None for a remark."""
    plain = line.strip()
    ordinary = plain == line and plain[:1] not in b"#~\"'" and b"\\" not in plain and b":" not in plain
    if ordinary:
        return os.path.normpath(os.path.join(base, plain))
    for text in _readings(line, plain):
        path = os.path.normpath(os.path.join(base, text))
        if os.path.lexists(path):
            return path
    if plain.startswith(b"#"):
        return None
    if DRIVE.match(plain.strip(b"\"'")):
        raise UsageError(f"{shown(source)} lists a path of Windows: {shown(plain)}: write the paths that it has here")
    if ADDRESS.match(plain) and not plain.startswith(LOCAL):
        raise UsageError(f"{shown(source)} lists an address: {shown(plain)}: fetch the files and list their paths")
    return os.path.normpath(os.path.join(base, list(_readings(line, plain))[-1]))


def _readings(line: bytes, plain: bytes) -> Iterator[bytes]:
    """Yield what a line may mean, the most literal first."""
    yield line
    yield line.lstrip()
    yield plain
    if len(plain) > 1 and plain[:1] == plain[-1:] and plain[:1] in b"\"'":
        plain = plain[1:-1]
        yield plain
    if plain.startswith(b"~"):
        plain = os.path.expanduser(plain)
        yield plain
    if plain.startswith(LOCAL):
        plain = unquote_to_bytes(plain.removeprefix(LOCAL))
        yield plain
    if b"\\" in plain:
        yield plain.replace(b"\\", b"/")


def _checked(source: Path, found: list[bytes]) -> Listed:
    """Look at the listed paths: at all whose names are no images' names, and at a sample of the others."""
    sample = set((np.arange(min(len(found), LOOKED_AT)) * len(found) // min(len(found), LOOKED_AT)).tolist())
    missing: list[bytes] = []
    special: list[bytes] = []
    listed = Listed()
    for position, path in enumerate(found):
        if position in sample or extension(path) not in EXTENSIONS:
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError):
                missing.append(path)
            else:
                if stat.S_ISDIR(mode):
                    listed.folders.add(len(listed.paths))
                elif not stat.S_ISREG(mode):
                    special.append(path)
                    continue
        listed.paths.append(path)
    if len(missing) == len(found) or not listed.paths:
        raise DataError(
            f"{shown(source)}: its first path is no file: {shown(found[0])} (paths are relative to the list's folder);"
            f" {len(found)} listed, none that was looked for exists"
        )
    if missing:
        looked = "" if len(found) <= LOOKED_AT else f", {len(sample)} looked at"
        reason = f"of {len(found)} in {shown(source)}{looked}"
        listed.passed.append(Passed("missing", reason, len(missing), tuple(missing[:FIRST])))
    if special:
        listed.passed.append(Passed("special", f"in {shown(source)}", len(special), tuple(special[:FIRST])))
    return listed
