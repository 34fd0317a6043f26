"""A file on another machine read by ranges: its headers, or a few of its images, without fetching all of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

PIECE = 1 << 13
"""Bytes of a request: the header of a member, the small members that follow it, and the header after them."""
FIRST = 1 << 16
"""Bytes of the first request."""
DENSE = 1 << 17
"""Bytes between two requests, on average, below which the whole file costs no more: a request takes the time of so many
at some 20 ms, 100 MB/s and 16 files at once."""
TRIED = 8
"""Requests after which that is judged."""
MOST = 20_000
"""Requests of a file; then it is fetched as a whole."""

Range = Callable[[int, int], bytes | None]
"""(first byte, end) -> these bytes; None = the server has no ranges."""


class RangedFile(io.RawIOBase):
    """A file that is read by requests for ranges while few of its bytes are needed, and then from its copy.

    Attributes:
        requests: that were made.
        received: bytes that came.

    Args:
        size: of the file.
        ask: for bytes of it.
        whole: opens its copy, which is fetched before; called at most once.
        here: whether there is a copy already.
    """

    def __init__(self, size: int, ask: Range, whole: Callable[[], BinaryIO], here: bool = False) -> None:
        super().__init__()
        self.requests = self.received = 0
        self._size, self._ask, self._whole = size, ask, whole
        self._copy = whole() if here else None
        self._place = self._start = 0
        self._held = b""

    def readable(self) -> bool:
        """Say that it is read."""
        return True

    def seekable(self) -> bool:
        """Say that it is read in any order."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is asked for."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes from here on, fewer only at the end.

        Raises:
            MstError, OSError: they cannot be had.
        """
        left = max(0, self._size - self._place)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._at(self._place, wanted) if wanted else b""
        self._place += len(data)
        return data

    def close(self) -> None:
        """Close the copy."""
        if self._copy is not None:
            self._copy.close()
        super().close()

    def _at(self, start: int, size: int) -> bytes:
        if self._copy is None and not self._start <= start <= start + size <= self._start + len(self._held):
            self._request(start, size)
        if self._copy is not None:
            self._copy.seek(start)
            return self._copy.read(size)
        return self._held[start - self._start : start - self._start + size]

    def _request(self, start: int, size: int) -> None:
        """Ask for bytes and some that follow, or open the copy."""
        dense = self.requests >= TRIED and start < self.requests * DENSE
        end = min(self._size, start + max(size, PIECE if self.requests else FIRST))
        data = None if dense or self.requests >= MOST else self._ask(start, end)
        if data is None:
            self._copy = self._whole()
            return
        self._start, self._held = start, data
        self.requests += 1
        self.received += len(data)
