"""Images that cannot be read: counted by a training that replaces them, or by an evaluation that leaves them out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from mst.data.background import READERS, read_in_threads
from mst.data.decoding import OtherChannels, UnreadableImage
from mst.data.reader import Chunk
from mst.data.sources.protocol import ImageSource
from mst.errors import DataError
from mst.runtime import logging

Read = TypeVar("Read")

ENOUGH_TO_JUDGE = 1000
"""Files of which the share of unreadable ones is taken while fewer have been read (fewer when an epoch has fewer)."""


class UnreadableFiles:
    """Counts files read and files that failed, each file once, and lists the latter in a text file.

    Attributes:
        limit: largest share of unreadable files among those read, or among `enough` while fewer were: the first eight
            images say nothing of all.
        flag: how the user gave the limit, for the message.
        listing: text file that gets one line per file, path TAB reason; None = no list.
    """

    def __init__(self, images: ImageSource, *, limit: float, flag: str, enough: int, listing: Path | None) -> None:
        self.limit = limit
        self.flag = flag
        self.listing = listing
        self._images = images
        self._enough = min(enough, ENOUGH_TO_JUDGE)
        self._read = torch.zeros(len(images), dtype=torch.bool)
        self._failed = torch.zeros(len(images), dtype=torch.bool)
        self._listed = _listed_before(listing)

    @property
    def count(self) -> int:
        """Files that failed so far."""
        return int(self._failed.sum())

    @property
    def files_read(self) -> int:
        """Files tried so far, the failed ones included."""
        return int(self._read.sum())

    def note(self, chunk: Chunk) -> None:
        """Add what one chunk met.

        Raises:
            DataError: more files than the limit allows were unreadable.
        """
        self._read[chunk.read] = True
        new = {index: reason for index, reason in chunk.unreadable if not self._failed[index]}
        if new:
            self._failed[list(new)] = True
            self._append(new)
        self._judge()

    def _judge(self) -> None:
        """Compare the share of failures with the limit."""
        failed = self.count
        if failed > self.limit * max(self.files_read, self._enough):
            where = f"; {self.listing} lists them" if self.listing else ""
            raise DataError(
                f"{failed} of the {self.files_read} images read so far are unreadable"
                f" ({failed / self.files_read:.1%}, at most {self.limit:.1%}){where};"
                f" mend or remove them, or raise {self.flag}"
            )

    def _append(self, new: dict[int, str]) -> None:
        """Write the failures that the list does not hold yet."""
        if self.listing is None:
            return
        lines = {_one_line(os.fsencode(self._images.name(index))): reason for index, reason in new.items()}
        with self.listing.open("ab") as file:
            file.writelines(
                path + b"\t" + reason.encode("utf-8", "backslashreplace") + b"\n"
                for path, reason in lines.items()
                if path not in self._listed
            )
        self._listed.update(lines)


@dataclass
class LeftOut:
    """Counts the images of an evaluation or a prediction that cannot be used; the result is of the others.

    Attributes:
        total: images of the set.
        share: largest share of it that may be left out; all of them never may.
        lines: one for each image that was.
    """

    total: int
    share: float = 1.0
    lines: list[str] = field(default_factory=list)

    def add(self, problem: DataError) -> None:
        """Count one.

        Raises:
            DataError: they are too many.
        """
        origin = " by the backbone" if isinstance(problem, OtherChannels) else ""
        self.lines.append(f"{problem}{origin}")
        self.check()

    def check(self) -> None:
        """Refuse too many of them.

        Raises:
            DataError: they are more than the share, or all.
        """
        left_out = len(self.lines)
        if left_out and left_out == self.total:
            raise DataError(f"none of {self.total} images can be read, the first: {self.lines[0]}")
        if left_out > self.share * self.total:
            raise DataError(
                f"{left_out} of {self.total} images cannot be read, at most {self.share:.0%} may be left out; "
                f"the last: {self.lines[-1]}"
            )


def tell_left_out(lines: Sequence[str], total: int, title: str = "") -> None:
    """Say on stderr how many images were left out, if any were."""
    if lines:
        logging.warn(f"{title}{': ' * bool(title)}{len(lines)} of {total} images left out, the first: {lines[0]}")


def each_readable(
    read: Callable[[int], Read],
    positions: Iterable[int],
    note: Callable[[DataError], None],
    *,
    workers: int = READERS,
    ahead: int = 0,
    catch: type[DataError] = UnreadableImage,
) -> Generator[tuple[int, Read | None], None, None]:
    """Yield (position, `read(position)`) in order, read ahead by threads; None where it cannot be read.

    Args:
        read: raises what this function raises.
        positions: of what is read.
        note: called with the error of each that cannot be read, before it comes; may raise.
        workers, ahead: see `mst.data.background.read_in_threads`.
        catch: errors that mean that one cannot be read.
    """

    def tried(position: int) -> tuple[int, Read | DataError]:
        try:
            return position, read(position)
        except catch as problem:
            return position, problem

    with closing(read_in_threads(tried, positions, workers, ahead=ahead)) as found:
        for position, item in found:
            if isinstance(item, DataError):
                note(item)
                yield position, None
            else:
                yield position, item


def _one_line(path: bytes) -> bytes:
    """Return a path whose bytes are kept but for those that would end its line or its column."""
    return path.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")


def _listed_before(listing: Path | None) -> set[bytes]:
    """Return the paths that an earlier part of the same run listed."""
    if listing is None or not listing.exists():
        return set()
    return {line.rpartition(b"\t")[0] for line in listing.read_bytes().splitlines()}
