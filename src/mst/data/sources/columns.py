"""Images in a column of parquet or Arrow files, such as those of Hugging Face data sets.

Arrow files are mapped into memory, and any row is read by itself. Of a parquet file a whole row group has to be decoded
for one row; the groups used last are kept, up to `MOST_KEPT` bytes in each process.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mst.data.files.kinds import begins_as_image
from mst.data.files.passed import NOTHING, PassedOver
from mst.data.sources.arrow_rows import checked
from mst.data.sources.places import PARQUET
from mst.data.sources.protocol import ClassLabels, ImageSource, ends_of_runs, identity_of_bytes
from mst.data.sources.schema import Column, class_names, find_column, label_column
from mst.data.sources.shard import Shard
from mst.errors import DataError, MissingExtra, UsageError
from mst.runtime.identity import DataIdentity
from mst.runtime.names import shown

MOST_KEPT = 1 << 29
"""Bytes of decoded row groups that a process keeps."""
LOOKED_AT = 8
"""Rows of which at least one must begin as an image does."""


class Block(NamedTuple):
    """Rows that are read together: a row group of a parquet file, or an Arrow file."""

    shard: int
    group: int
    rows: int


@dataclass(frozen=True, eq=False)
class ColumnImages(ImageSource):
    """Rows of parquet or Arrow files.

    Attributes:
        shards: the files.
        blocks: their row groups.
        column: that holds the images.
        positions: of the images among the rows of all files: int64 [n].
        passed: nothing.
    """

    shards: Sequence[Shard]
    blocks: Sequence[Block]
    column: Column
    positions: npt.NDArray[np.int64]
    passed: PassedOver = NOTHING

    @property
    def sized(self) -> bool:
        """Whether all files are Arrow's: of a parquet file a whole row group is decoded."""
        return not any(map(is_parquet, self.shards))

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """Return the file's path and the number of the row in it."""
        row = self._row(position)
        number = self.blocks[bisect_right(self._end_list, row)].shard
        return f"{self.shards[number].name}[{row - self._start_list[number]}]"

    def size(self, position: int) -> int:
        """Return the bytes of an image."""
        return len(self._value(position))

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return the bytes of an image.

        Raises:
            OSError: the file cannot be read, or the row holds nothing.
        """
        value = self._value(position)
        return bytearray(value if most is None else memoryview(value)[:most])

    def only(self, positions: npt.NDArray[np.int64]) -> ColumnImages:
        """Return the images at these positions, in this order."""
        return replace(self, positions=self.positions[positions])

    def files(self) -> Iterable[Path]:
        """Return the user's files."""
        return [path for shard in self.shards if (path := shard.local()) is not None]

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: column, rows of each file, chosen rows, and an even sample of the images."""
        said = [self.column.name.encode(), *(b"%d %d" % (block.shard, block.rows) for block in self.blocks)]
        names = (b"%d" % row for row in self.positions.tolist())
        return identity_of_bytes(self, name, [*said, *names])

    def runs(self) -> npt.NDArray[np.int64]:
        """Return where the images of one file end and those of the next begin."""
        return ends_of_runs(self._shard_of[np.searchsorted(self._ends, self.positions, side="right")])

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Fetch the files of these images, in their order."""
        numbers = self._shard_of[np.searchsorted(self._ends, self.positions[positions], side="right")]
        for number in dict.fromkeys(numbers.tolist()):
            self.shards[number].fetch_soon()

    def labels(self) -> ClassLabels | None:
        """Return the classes in the label column; None = there is none.

        Raises:
            DataError: a row without a class.
        """
        schema = schema_of(self.shards[0])
        found = label_column(schema)
        if found is None:
            return None
        values = [value for shard in self.shards for value in _column_values(shard, found)]
        chosen = [values[row] for row in self.positions.tolist()]
        if None in chosen:
            place = chosen.index(None)
            raise DataError(f"{shown(self.name(place))} has no class: its column {found} is empty there")
        if not all(isinstance(value, int | str) for value in chosen):
            raise DataError(
                f"{shown(self.shards[0].name)}: the column {found} holds neither numbers nor names of classes"
            )
        told = {shard.name: class_names(schema_of(shard), found) for shard in self.shards}
        names = told[self.shards[0].name]
        other = next((shard for shard, each in told.items() if each != names), None)
        if other is not None:
            raise DataError(
                f"{shown(self.shards[0].name)} and {shown(other)} call the classes of {found} by other names "
                f"({_some(names)} and {_some(told[other])}): which number is which class is not known"
            )
        if names is None:
            return ClassLabels.of([str(value) for value in chosen])
        numbers = np.array(chosen, dtype=np.int64)
        if numbers.min() < 0 or numbers.max() >= len(names):
            place = int(np.flatnonzero((numbers < 0) | (numbers >= len(names)))[0])
            raise DataError(
                f"{shown(self.name(place))} is of class {numbers[place]}: {len(names)} classes have names in {found}"
            )
        return ClassLabels(names, numbers)

    def _row(self, position: int) -> int:
        if not 0 <= position < len(self.positions):
            raise IndexError(f"image {position} of {len(self)}")
        return int(self.positions[position])

    def _value(self, position: int) -> Any:
        """Return a buffer of an image's bytes.

        Raises:
            OSError: there is none.
        """
        row = self._row(position)
        number = bisect_right(self._end_list, row)
        block = self.blocks[number]
        values = self._kept.get(self.shards[block.shard], block, self.column)
        value = values[row - self._end_list[number] + block.rows]
        if not value.is_valid:
            raise OSError("the row holds no image")
        return value.as_buffer()

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([block.rows for block in self.blocks], dtype=np.int64)

    @cached_property
    def _end_list(self) -> list[int]:
        """The same for single rows: numpy is slow at them."""
        found: list[int] = self._ends.tolist()
        return found

    @cached_property
    def _start_list(self) -> list[int]:
        found: list[int] = self._shard_starts.tolist()
        return found

    @cached_property
    def _shard_of(self) -> npt.NDArray[np.int64]:
        return np.array([block.shard for block in self.blocks], dtype=np.int64)

    @cached_property
    def _shard_starts(self) -> npt.NDArray[np.int64]:
        rows = np.bincount(self._shard_of, [block.rows for block in self.blocks], len(self.shards)).astype(np.int64)
        return np.cumsum(rows) - rows

    @cached_property
    def _kept(self) -> _Kept:
        return _Kept()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}


def _some(names: tuple[str, ...] | None) -> str:
    return "none" if names is None else ", ".join(map(shown, names[:5])) + ", ..." * (len(names) > 5)


class _Kept:
    """The decoded blocks used last, shared by the threads of a process."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[Block, tuple[Any, int]] = OrderedDict()
        self._lock, self._process, self._room = threading.Lock(), os.getpid(), MOST_KEPT

    def get(self, shard: Shard, block: Block, column: Column) -> Any:
        """Return the values of a block's column: an Arrow array of bytes."""
        if os.getpid() != self._process:  # a lock may have been held when this process was forked
            self.__init__()  # type: ignore[misc]
        with self._lock:
            if block in self._blocks:
                self._blocks.move_to_end(block)
                return self._blocks[block][0]
            values, size = _read(shard, block, column)
            while self._blocks and self._room < size:
                self._room += self._blocks.popitem(last=False)[1][1]
            self._blocks[block] = values, size
            self._room -= size
            return values


def _read(shard: Shard, block: Block, column: Column) -> tuple[Any, int]:
    """Return a block's values, and how many bytes of memory they take."""
    try:
        return _read_once(shard, block, column)
    except FileNotFoundError:
        if shard.local() is not None:
            raise
        return _read_once(shard, block, column)  # its copy was deleted to make room, before it was opened


def _read_once(shard: Shard, block: Block, column: Column) -> tuple[Any, int]:
    arrow, parquet = _pyarrow()
    try:
        if is_parquet(shard):
            with parquet.ParquetFile(shard.path(), memory_map=True) as file:
                table = file.read_row_group(block.group, columns=[column.path], use_threads=False)
            size = table.nbytes
        else:
            table, size = _mapped(shard.path()).select([column.name]), 0
    except (arrow.ArrowException, EOFError) as error:
        raise OSError(f"the file cannot be read: {' '.join(str(error).split())}") from error
    values = table.column(0)
    if column.inner:
        flat = [chunk.field(column.inner) for chunk in values.chunks]
        values = arrow.chunked_array(flat, type=column.kind)
    return checked(values, arrow.ArrowException), size


def _mapped(path: Path) -> Any:
    """Return the table of an Arrow file, mapped into memory: of the stream format, or of the file format."""
    arrow, _ = _pyarrow()
    source = arrow.memory_map(os.fspath(path))
    try:
        return arrow.ipc.open_stream(source).read_all()
    except arrow.ArrowInvalid:
        source.seek(0)
        return arrow.ipc.open_file(source).read_all()


def _column_values(shard: Shard, name: str) -> list[Any]:
    """Return a column of a file as Python's values."""
    arrow, parquet = _pyarrow()
    try:
        if is_parquet(shard):
            table = parquet.read_table(shard.path(), columns=[name], use_threads=False, memory_map=True)
        else:
            table = _mapped(shard.path()).select([name])
        table.validate(full=True)
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{shown(shard.name)}: the column {name} cannot be read: {_said(error)}") from error
    found: list[Any] = table.column(0).to_pylist()
    return found


def column_images(shards: Sequence[Shard], wanted: str = "") -> ColumnImages:
    """Return the images in parquet or Arrow files, in the order of the files and of their rows.

    Args:
        shards: the files, all with the same columns.
        wanted: name of the column; empty = the one that holds images.

    Raises:
        UsageError: a file cannot be read, or there is no such column, or more than one.
        DataError: a damaged file, or a column that holds no images.
        MissingExtra: pyarrow.
    """
    column: Column | None = None
    blocks: list[Block] = []
    for number, shard in enumerate(shards):
        found = find_column(schema_of(shard), wanted, shard.name)
        if column is not None and found != column:
            raise DataError(
                f"{shown(shard.name)} has its images in {found}, {shown(shards[0].name)} in {column}: name one column, "
                "or give the files by themselves"
            )
        column = found
        blocks += [Block(number, group, rows) for group, rows in enumerate(_rows(shard)) if rows]
    if column is None or not blocks:
        raise DataError(f"{shown(shards[0].name)} holds no rows")
    count = sum(block.rows for block in blocks)
    images = ColumnImages(tuple(shards), tuple(blocks), column, np.arange(count, dtype=np.int64))
    _check_images(images)
    return images


def _check_images(images: ColumnImages) -> None:
    """Look at a few rows.

    Raises:
        DataError: none of them begins as an image does.
    """
    first = images.evenly(LOOKED_AT)
    told = ""
    for position in range(len(first)):
        try:
            head = bytes(first.read_bytes(position, 32))
        except OSError as error:
            told = told or str(error)
            continue
        if begins_as_image(head):
            return
        told = told or f"begins as {head[:16]!r}"
    raise DataError(
        f"{shown(images.shards[0].name)}: the column {images.column} holds no images: none of {len(first)} rows "
        f"looked at begins as one, the first: {told}"
    )


def schema_of(shard: Shard) -> Any:
    """Return the columns of a file.

    Raises:
        UsageError: it cannot be read.
    """
    arrow, parquet = _pyarrow()
    try:
        return parquet.read_schema(shard.path()) if is_parquet(shard) else _mapped(shard.path()).schema
    except (arrow.ArrowException, OSError) as error:
        kind = "a parquet file" if is_parquet(shard) else "an Arrow file"
        raise UsageError(f"{shown(shard.name)} cannot be read as {kind}: {_said(error)}") from error


def _rows(shard: Shard) -> list[int]:
    """Return the rows of each row group."""
    _, parquet = _pyarrow()
    if not is_parquet(shard):
        return [_mapped(shard.path()).num_rows]
    found = parquet.read_metadata(shard.path())
    return [found.row_group(group).num_rows for group in range(found.num_row_groups)]


def is_parquet(shard: Shard) -> bool:
    """Return whether a file is called a parquet file."""
    return shard.name.lower().endswith("." + PARQUET.decode())


def _said(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or " ".join(str(error).split())[:200]


def _pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its parquet module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data") from None
    return pyarrow, pyarrow.parquet
