"""One file of many images: on this machine, or (`mst.data.sources.remote`) fetched when it is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mst.errors import UsageError
from mst.runtime.names import shown


class Shard(Protocol):
    """A file that is read by offsets, and may have to be fetched first. It is copied into worker processes."""

    @property
    def name(self) -> str:
        """What messages call it: its path or address."""

    def open(self) -> int:
        """Return a descriptor of the file, open for reading.

        Raises:
            OSError: it cannot be had.
        """

    def path(self) -> Path:
        """Return where the file lies, after it was fetched.

        Raises:
            OSError: it cannot be had.
        """

    def stamp(self) -> tuple[int | str, ...]:
        """Return what changes when the file does.

        Raises:
            OSError: it cannot be had.
        """

    def local(self) -> Path | None:
        """Return the user's own file; None for one that was fetched."""

    def fetch_soon(self) -> None:
        """Begin to fetch it, if it is not here."""


@dataclass(frozen=True)
class LocalShard:
    """A file on this machine."""

    name: str

    def open(self) -> int:
        """Return a descriptor of the file."""
        return os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))

    def path(self) -> Path:
        """Return its path."""
        return Path(self.name)

    def stamp(self) -> tuple[int | str, ...]:
        """Return its size and time of change."""
        found = os.stat(self.name)
        return found.st_size, found.st_mtime_ns

    def local(self) -> Path | None:
        """Return its path."""
        return Path(self.name)

    def fetch_soon(self) -> None:
        """Do nothing: it is here."""


def opened(shard: Shard) -> int:
    """Return a descriptor of a shard that is going to be planned.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        return shard.open()
    except OSError as error:
        raise UsageError(f"{shown(shard.name)} cannot be read: {error.strerror or error}") from error


def read_at(shard: Shard, start: int, size: int) -> bytearray:
    """Return bytes of a shard.

    Raises:
        OSError: it cannot be had, or ends before them.
    """
    data = bytearray(size)
    descriptor = shard.open()
    try:
        done = 0
        while done < size:
            more = os.preadv(descriptor, [memoryview(data)[done:]], start + done)
            if not more:
                raise OSError(f"the file ends {size - done} bytes before the end of this image: is it cut short?")
            done += more
    finally:
        os.close(descriptor)
    return data
