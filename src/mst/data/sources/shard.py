"""One file of many images: on this machine, or (`mst.data.sources.remote`) fetched when it is needed."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from mst.data.files.folders import FRESH
from mst.data.files.tar_listing import MOST_BYTES, beside
from mst.errors import UsageError
from mst.runtime.names import shown

AT_ONCE = 16
"""Files of other machines that are asked for pieces at a time."""


KEPT = 64
"""Files that a thread keeps open."""


class _Descriptor:
    """A descriptor that is closed when nobody holds it any more, at the latest with its thread."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


class _OpenFiles(threading.local):
    """What a thread keeps open, the one that was used longest ago first: none is closed while another thread reads."""

    def __init__(self) -> None:
        self.files: OrderedDict[tuple[str, int], _Descriptor] = OrderedDict()


_open = _OpenFiles()


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

    def kept(self) -> int | None:
        """Return a descriptor that this thread keeps open; None = open one and close it.

        Raises:
            OSError: it cannot be had.
        """

    def headers(self) -> BinaryIO:
        """Return the file, to read a few places of.

        Raises:
            OSError: it cannot be had.
        """

    def listing(self) -> bytes | None:
        """Return the list of its members that lies beside it (`mst.data.files.tar_listing`); None = there is none.

        Raises:
            MstError: it cannot be had.
        """

    def piece(self, start: int, size: int) -> bytes | None:
        """Return bytes of a file that is not here, where few are wanted of it; None = open it.

        Raises:
            MstError: they cannot be had.
        """

    def settled(self) -> bool:
        """Return whether its stamp tells its content: not while the file changes, nor where there is no mark of it."""

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
    """A file on this machine, as it was when it was found: one that takes its name later is another file.

    Attributes:
        name: its path.
        found: tells this record from a later one of the same path.
    """

    name: str
    found: int = field(default_factory=time.monotonic_ns, compare=False, repr=False)

    def open(self) -> int:
        """Return a descriptor of the file."""
        return os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))

    def kept(self) -> int:
        """Return a descriptor of the file, which this thread opens once."""
        files, key = _open.files, (self.name, self.found)
        if (file := files.get(key)) is None:
            if len(files) >= KEPT:
                files.popitem(last=False)
            file = files[key] = _Descriptor(self.open())
        else:
            files.move_to_end(key)
        return file.number

    def headers(self) -> BinaryIO:
        """Return the file, to read a few places of."""
        return os.fdopen(self.open(), "rb", buffering=4 * 512)

    def listing(self) -> bytes | None:
        """Return the list of its members that lies beside it; None = there is none."""
        place = Path(beside(self.name))
        return place.read_bytes() if place.is_file() and place.stat().st_size <= MOST_BYTES else None

    def piece(self, start: int, size: int) -> bytes | None:
        """Return nothing: it is here."""
        return None

    def settled(self) -> bool:
        """Return whether it was left alone for a while."""
        return time.time_ns() - os.stat(self.name).st_mtime_ns >= FRESH

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


def stamped(shard: Shard) -> tuple[int | str, ...]:
    """Return the stamp of a shard that is going to be planned.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        if shard.local() is not None:
            os.close(shard.open())
        return shard.stamp()
    except OSError as error:
        raise UsageError(f"{shown(shard.name)} cannot be read: {error.strerror or error}") from error


def read_at(shard: Shard, start: int, size: int) -> bytearray:
    """Return bytes of a shard.

    Raises:
        OSError: it cannot be had, or ends before them.
    """
    piece = shard.piece(start, size)
    if piece is not None:
        return bytearray(piece)
    kept = shard.kept()
    if kept is not None:
        return _read(kept, start, size)
    descriptor = shard.open()
    try:
        return _read(descriptor, start, size)
    finally:
        os.close(descriptor)


def _read(descriptor: int, start: int, size: int) -> bytearray:
    data = bytearray(size)
    done = os.preadv(descriptor, [data], start) if size else 0
    while done < size:
        more = os.preadv(descriptor, [memoryview(data)[done:]], start + done)
        if not more:
            raise OSError(f"the file ends {size - done} bytes before the end of this image: is it cut short?")
        done += more
    return data
