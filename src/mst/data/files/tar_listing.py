"""A list of a tar file's members beside it, `train-00000.idx` of `train-00000.tar`: read in place of all headers.

The lines are those of NVIDIA DALI's `wds2idx`, version 1.2: a sample each, `EXTENSION OFFSET SIZE NAME` of its members.
It is believed only where it leaves no byte of the tar file out, and where the headers of some members say the same.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO, NamedTuple

from mst.runtime import logging
from mst.runtime.names import shown

ENDING = ".idx"
VERSION = "v1.2"
BLOCK = 512
PROBES = 5
"""Members whose headers are compared."""
MOST_BYTES = 1 << 30
"""Of a list."""


class Listed(NamedTuple):
    """A member: its name, and where its bytes are."""

    name: str
    start: int
    size: int


def beside(name: str) -> str:
    """Return the path or address of the list of a tar file."""
    place, mark, query = name.partition("?") if "://" in name else (name, "", "")
    return os.path.splitext(place)[0] + ENDING + mark + query


def listing(samples: Sequence[Sequence[Listed]]) -> str:
    """Return the text of a list of samples, of members whose names have no spaces."""
    lines = [
        " ".join(f"{member.name.partition('.')[2]} {member.start} {member.size} {member.name}" for member in sample)
        for sample in samples
    ]
    return "".join(f"{line}\n" for line in (f"{VERSION} {len(samples)}", *lines))


def listed(text: bytes, file: BinaryIO, name: str) -> list[Listed] | None:
    """Return the members of a tar file as a list has them; None = the list does not describe this file.

    Args:
        text: the list.
        file: the tar file; a few places of it are read.
        name: what messages call it.
    """
    members = _parsed(text)
    if members is not None and _whole(members, file) and all(_agrees(one, file) for one in _some(members)):
        return members
    logging.info(f"{shown(beside(name))} does not describe the tar file beside it: its headers are read")
    return None


def _parsed(text: bytes) -> list[Listed] | None:
    try:
        head, *lines = text.decode("utf-8", "surrogateescape").splitlines()
        version, count = head.split(" ")
        if version != VERSION or int(count) != len(lines):
            return None
        words = [line.split(" ") for line in lines]
        if any(len(line) % 4 for line in words):
            return None
        return [
            Listed(line[place + 3], int(line[place + 1]), int(line[place + 2]))
            for line in words
            for place in range(0, len(line), 4)
        ]
    except ValueError:
        return None


def _whole(members: Sequence[Listed], file: BinaryIO) -> bool:
    """Return whether members follow each other without a gap from the file's beginning to its end mark."""
    place = 0
    for member in members:
        if member.start != place + BLOCK or member.size < 0:
            return False
        place = member.start + -(-member.size // BLOCK) * BLOCK
    rest = file.seek(0, os.SEEK_END) - place
    if not 2 * BLOCK <= rest <= tarfile.RECORDSIZE + 2 * BLOCK:
        return False
    file.seek(place)
    return not file.read(rest).strip(b"\0")


def _some(members: Sequence[Listed]) -> Iterable[Listed]:
    """Return members at even distances, the first and the last among them."""
    places = {(len(members) - 1) * number // (PROBES - 1) for number in range(PROBES)} if members else set[int]()
    return [members[place] for place in sorted(places)]


def _agrees(member: Listed, file: BinaryIO) -> bool:
    """Return whether the header of a member says what the list says."""
    file.seek(member.start - BLOCK)
    try:
        info = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return info.isreg() and (info.name, info.size) == (member.name, member.size)
