"""Images that are members of tar files (shards), each read by its offset when it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.background import read_in_threads
from mst.data.files.passed import NOTHING, PassedOver
from mst.data.files.tar_index import LABELS, NO_LABEL, TarTable, joined, tar_table
from mst.data.sources.protocol import ClassLabels, ImageSource, ends_of_runs, identity_of_bytes
from mst.data.sources.shard import AT_ONCE, Shard, read_at, stamped
from mst.errors import DataError
from mst.runtime import logging
from mst.runtime.identity import DataIdentity
from mst.runtime.names import shown

MANY = 20
"""Shards from which it is said that their headers are read."""
JSON_KEYS = ("label", "cls", "class")
"""Keys of a JSON member that hold a class, the first that is there."""


@dataclass(frozen=True, eq=False)
class TarImages(ImageSource):
    """Members of tar files.

    Attributes:
        shards: the files.
        table: of the images of all of them.
        shard_of: number of the file of each image in the table: int32 [m].
        positions: of the images in the table: int64 [n].
        passed: what the files hold beside them.
    """

    shards: Sequence[Shard]
    table: TarTable
    shard_of: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    passed: PassedOver = NOTHING

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """Return the file's path and the member's name."""
        place = self._at(position)
        return f"{self.shards[self.shard_of[place]].name}:{os.fsdecode(self._member(place))}"

    def size(self, position: int) -> int:
        """Return the bytes of a member."""
        return int(self.table.sizes[self._at(position)])

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return a member's bytes.

        Raises:
            OSError: the file is not there any more, or shorter.
        """
        place = self._at(position)
        size = int(self.table.sizes[place])
        wanted = size if most is None else min(most, size)
        return read_at(self.shards[self.shard_of[place]], int(self.table.starts[place]), wanted)

    def only(self, positions: npt.NDArray[np.int64]) -> TarImages:
        """Return the images at these positions, in this order."""
        return replace(self, positions=self.positions[positions])

    def files(self) -> Iterable[Path]:
        """Return the user's files."""
        return [path for shard in self.shards if (path := shard.local()) is not None]

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: names of files and members, and an even sample of the images."""
        ends = self._ends
        titles = [os.fsencode(os.path.basename(shard.name)) + b":" for shard in self.shards]
        names = (
            titles[self.shard_of[place]] + self.table.names[ends[place] : ends[place + 1]]
            for place in self.positions.tolist()
        )
        return identity_of_bytes(self, name, names)

    def runs(self) -> npt.NDArray[np.int64]:
        """Return where the images of one file end and those of the next begin."""
        return ends_of_runs(self.shard_of[self.positions])

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Fetch the files of these images, in their order."""
        numbers = self.shard_of[self.positions[positions]]
        for number in dict.fromkeys(numbers.tolist()):
            self.shards[number].fetch_soon()

    def labels(self) -> ClassLabels | None:
        """Return the classes in members `cls`, `label` or `json`.

        Raises:
            DataError: some images have a class and others do not, or a member holds none.
        """
        kinds = self.table.label_kinds[self.positions]
        missing = np.flatnonzero(kinds == NO_LABEL)
        if len(missing) == len(kinds):
            return None
        if len(missing):
            raise DataError(
                f"{len(missing)} of {len(kinds)} images have no label, such as {shown(self.name(int(missing[0])))}: "
                f"a member {' or '.join(kind.decode() for kind in LABELS)} is expected beside each"
            )
        return ClassLabels.of([self._label(place) for place in self.positions.tolist()])

    def _label(self, place: int) -> str:
        """Return the class of an image.

        Raises:
            DataError: its member holds none.
        """
        table = self.table
        shard = self.shards[self.shard_of[place]]
        kind = LABELS[int(table.label_kinds[place])]
        named = f"{shard.name}:{os.fsdecode(self._member(place))}"
        try:
            text = read_at(shard, int(table.label_starts[place]), int(table.label_sizes[place])).decode()
            if kind == b"json":
                found = json.loads(text)
                text = next(str(found[key]) for key in JSON_KEYS if isinstance(found.get(key), str | int))
        except (OSError, ValueError, AttributeError, StopIteration, RecursionError) as error:
            wanted = f" with a key {', '.join(JSON_KEYS[:-1])} or {JSON_KEYS[-1]}" * (kind == b"json")
            raise DataError(f"the member {kind.decode()} of {shown(named)} holds no class{wanted}") from error
        if not text.strip():
            raise DataError(f"the member {kind.decode()} of {shown(named)} is empty: a class is expected")
        return text.strip()

    def _at(self, position: int) -> int:
        if not 0 <= position < len(self.positions):
            raise IndexError(f"image {position} of {len(self)}")
        return int(self.positions[position])

    def _member(self, place: int) -> bytes:
        return self.table.names[self._ends[place] : self._ends[place + 1]]

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), self.table.lengths]).cumsum()


def _table(shard: Shard, *, wanted: frozenset[bytes], cache: Path | None) -> TarTable:
    """Return what a file holds.

    Raises:
        UsageError: it cannot be read.
        DataError: a damaged file.
    """
    stamp = stamped(shard)
    return tar_table(shard, stamp, wanted, cache if shard.settled() else None)


def tar_images(shards: Sequence[Shard], wanted: frozenset[bytes], cache: Path | None) -> TarImages:
    """Return the images in tar files, in the order of the files and of their members.

    Args:
        shards: the files.
        wanted: extensions of images.
        cache: where tables are remembered, see `mst.data.files.tar_index`.

    Raises:
        UsageError: a file cannot be read.
        DataError: a damaged file, or no images at all.
    """
    if len(shards) >= MANY:
        logging.info(f"reading the headers of {len(shards)} tar files (unchanged ones are remembered)")
    table_of = partial(_table, wanted=wanted, cache=cache)
    if all(shard.local() is not None for shard in shards):
        tables = list(map(table_of, shards))
    else:  # threads, which wait for other machines
        tables = list(read_in_threads(table_of, shards, min(len(shards), AT_ONCE), ahead=AT_ONCE))
    counts = [len(table.starts) for table in tables]
    table = joined(tables)
    passed = PassedOver.of(table.passed)
    if not sum(counts):
        found = "; ".join([*map(str, passed.troubles), *([passed.others()] if passed.others() else [])]) or "nothing"
        more = f" (and {len(shards) - 1} more)" if len(shards) > 1 else ""
        raise DataError(f"{shown(shards[0].name)}{more} holds no images; found: {found}")
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    return TarImages(tuple(shards), table._replace(passed=()), numbers, np.arange(len(numbers), dtype=np.int64), passed)
