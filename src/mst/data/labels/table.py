"""Tables of paths and labels as people and their programs write them: CSV and TSV of any separator and encoding."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.config.keys import suggestion
from mst.data.files.kinds import EXTENSIONS, extension
from mst.data.files.lists import BEGINNINGS
from mst.data.labels.record import NAMES, LabelOptions
from mst.data.sources.remote import content_of
from mst.errors import DataError, UsageError
from mst.paths import is_address, like_named
from mst.runtime.names import shown

TABLES = (".csv", ".tsv", ".tab")
"""Ends of the names of tables."""
SEPARATORS = (",", ";", "\t", "|", " ")
_SPOKEN = {"\t": "a tab", " ": "a space", ",": "a comma", ";": "a semicolon"}
SAMPLE = 64
"""Rows by which separator, header and columns are recognised."""
LONGEST_CELL = 1 << 20
MOST_BYTES = 1 << 30
"""Of a table on another machine."""
PATHS = (
    *("path", "filepath", "file", "filename", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    *("imageid", "id", "name", "relativepath", "relpath", "uri", "picture", "photo"),
)
MEANT = ("label", "class", "classname", "category", "categoryname", "labelname")
"""Those of labels that mean nothing else."""
COORDINATE = "x"
"""A column of numbers of this name says that `y` is the other coordinate, and no label."""
REMARKS = ("#", "sep=")
"""What first lines begin with that are no rows: remarks, and the separator that Excel is told."""
LABELS = ("label", "labels", "class", "classname", "classes", "category", "categoryname", "target", "labelname", "y")
SPLITS = ("split", "set", "subset", "partition", "part", "phase", "dataset", "fold")
"""Usual names of columns, without case, spaces and joints; earlier ones first."""
SAID_SPLITS = ("split", "subset", "partition")
"""Those of a split that mean nothing else; a column of another name is a split only where a cell names a part."""


@dataclass(frozen=True)
class Row:
    """What one row says.

    Attributes:
        line: of the file, from 1.
        path: as it is written.
        label: without spaces around it; "" = none.
        split: as it is written; "" where there is no such column.
    """

    line: int
    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        source: its path or address.
        rows: with a path each, in the file's order.
        columns: names or numbers of the columns for paths, labels and, if there is one, the split.
        has_split: whether it has a column that says which part a row belongs to.
    """

    source: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    has_split: bool


def is_table(path: Path) -> bool:
    """Return whether a path names a table of labels: by its end, and it is no folder."""
    return path.suffix.lower() in TABLES and not path.is_dir()


def read_table(source: str, options: LabelOptions) -> Table:
    """Read a table; separators (`,`, `;`, tab, `|`, spaces), header and columns are recognised.

    Args:
        source: its path or address; UTF-8 with or without mark, UTF-16, or (where it is no UTF-8) Windows-1252.
        options: its columns, where they are given.

    Raises:
        UsageError: it cannot be read, is no text, or lacks a column that was named.
        DataError: it holds no rows, no column of paths or of labels can be told, or a row has more cells than the
            first.
    """
    text = _text(source)
    separator = "\t" if source.lower().endswith((".tsv", ".tab")) else _separator(text)
    lines = [(number, cells) for number, cells in _lines(source, text, separator) if any(map(str.strip, cells))]
    if not lines:
        raise DataError(f"{shown(source)} is empty: rows of a path and a label are expected")
    while len(lines) > 1 and lines[0][1][0].lstrip().startswith(REMARKS):
        del lines[0]
    columns = _Columns(source, [cells for _, cells in lines], options)
    path, label, split = columns.path(), columns.label(), columns.split()
    rows: list[Row] = []
    width = len(lines[0][1])
    for number, cells in lines[columns.has_header :]:
        if any(map(str.strip, cells[width:])):  # which cell is which is not known then
            raise DataError(
                f"{shown(source)}, line {number}: {len(cells)} cells, and {width} in line {lines[0][0]}: put cells that"
                f" contain {_SPOKEN.get(separator, separator)} in quotes"
            )
        there = [cells[place].strip() if place is not None and place < len(cells) else "" for place in (label, split)]
        name = cells[path].strip() if path < len(cells) else ""
        if not name:
            raise DataError(f"{shown(source)}, line {number}: no path: one in each row is expected")
        rows.append(Row(number, name, *there))
    if not rows:
        raise DataError(f"{shown(source)} has a header and no rows: rows of a path and a label are expected")
    names = tuple(columns.title(place) for place in (path, label, split) if place is not None)
    return Table(source, tuple(rows), names, split is not None)


def _text(source: str) -> str:
    try:
        content = content_of(source, MOST_BYTES) if is_address(source) else Path(source).read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{shown(source)} does not exist{like_named(source)}: name a table (.csv, .tsv) of paths and labels"
        ) from None
    except OSError as error:
        raise UsageError(f"{shown(source)} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in BEGINNINGS if content.startswith(mark)), None)
    if encoding == "utf-8" or (encoding is None and b"\0" not in content[:2]):
        content, encoding = content.removeprefix(codecs.BOM_UTF8), "utf-8"
    if encoding is None:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        text = content.decode(encoding)
    except UnicodeError:
        text = content.decode("cp1252", "replace") if encoding == "utf-8" else "\0"
    if "\0" in text:
        raise UsageError(f"{shown(source)} is no text: name a table (.csv, .tsv) of paths and labels")
    return text


def _lines(source: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line that each row begins on, and its cells."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    first = 1
    try:
        for cells in reader:
            yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{shown(source)}, line {first}: {error}: is a quote not closed?") from error


def _separator(text: str) -> str:
    """Return the separator that gives rows of equal length, more than one cell each, and images among the cells."""

    def fit(separator: str) -> tuple[bool, int]:
        try:
            rows = [row for row in _some(text, separator) if any(map(str.strip, row))]
        except csv.Error:
            return False, 0
        widths = {len(row) for row in rows}
        images = sum(any(map(_is_image, row)) for row in rows)
        return len(widths) == 1 and max(widths) > 1, images

    return max(SEPARATORS, key=fit)  # the first of equal ones


def _some(text: str, separator: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    for _, row in zip(range(SAMPLE), reader, strict=False):
        yield [cell for cell in row if cell] if separator == " " else row


def _is_image(cell: str) -> bool:
    return extension(os.fsencode(cell.strip().encode("utf-8", "replace"))) in EXTENSIONS


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


class _Columns:
    """Tells which column is which, from what was asked for, from usual names, and from what the cells look like."""

    def __init__(self, source: str, rows: Sequence[Sequence[str]], options: LabelOptions) -> None:
        sample = rows[:SAMPLE]
        self._source, self._options, self._rows = source, options, rows[1:]
        self._first = [cell.strip() for cell in sample[0]]
        self._width = max(map(len, sample))
        usual = {*PATHS, *LABELS, *SPLITS}
        words = [_plain(cell) for cell in self._first]
        asked = [options.path_column, options.label_column, options.split_column]
        self._looks = [
            sum(place < len(row) and _is_image(row[place]) for row in sample[1:]) for place in range(self._width)
        ]
        named = any(word in usual for word in words) or any(name in self._first for name in asked if name)
        unlike = len(sample) > 1 and any(self._looks) and not any(map(_is_image, self._first))
        self.has_header = (named and not any(map(_is_image, self._first))) or unlike
        if not self.has_header:
            for place in range(min(self._width, len(self._first))):
                self._looks[place] += _is_image(self._first[place])

    def title(self, place: int) -> str:
        """Return what a column is called."""
        return self._first[place] if self.has_header and place < len(self._first) else str(place + 1)

    def path(self) -> int:
        """Return the number of the column with paths."""
        place = self._asked("path", self._options.path_column)
        if place is not None:
            return place
        usual = [place for name in PATHS if (place := self._usual([name])) is not None]
        files = [place for place, images in enumerate(self._looks) if images]
        place = next((place for place in usual if place in files or not files), None)
        if place is None and len(files) > 1:
            raise DataError(f"{self._told()} which of them holds the images: name it with --path-column")
        place = files[0] if place is None and files else place
        if place is None and not self.has_header and self._width == 2:
            place = 0
        if place is None:
            raise DataError(f"{self._told()} which column holds the paths: name it with --path-column")
        return place

    def label(self) -> int:
        """Return the number of the column with labels."""
        place = self._asked("label", self._options.label_column)
        usual = [name for name in LABELS if name != "y" or not self._coordinates()]
        place = self._usual(usual) if place is None else place
        if place is not None:
            self._refuse_others(place)
            return place
        rest = [other for other in range(self._width) if other not in {self.path(), self.split()}]
        if self._width < 2:
            raise DataError(f"{shown(self._source)} has one column: a path and a label in each row are expected")
        if len(rest) != 1:
            raise DataError(f"{self._told()} which column holds the labels: name it with --label-column")
        return rest[0]

    def _coordinates(self) -> bool:
        """Return whether there is a column of numbers called x."""
        place = self._usual([COORDINATE])
        if place is None:
            return False
        cells = [row[place].strip() for row in self._rows if place < len(row)]
        return all(cell.replace(".", "", 1).lstrip("-").isdigit() for cell in cells if cell)

    def _refuse_others(self, place: int) -> None:
        """Refuse a table with another column of labels that divides the images otherwise, where none was named.

        Raises:
            DataError: it has one.
        """
        if self._options.label_column is not None:
            return
        words = [_plain(cell) for cell in self._first]
        for other in (words.index(name) for name in MEANT if name in words and words.index(name) != place):
            cells = ((row[place].strip(), row[other].strip()) for row in self._rows if max(place, other) < len(row))
            pairs = {pair for pair in cells if not {"", "nan"} & {word.lower() for word in pair}}
            if len({two for _, two in pairs}) < 2:
                continue
            if not len(pairs) == len({one for one, _ in pairs}) == len({two for _, two in pairs}):
                both = f"{shown(self.title(place))} and {shown(self.title(other))}"
                raise DataError(
                    f"{shown(self._source)} has two columns of labels, {both}: name one with --label-column"
                )

    def split(self) -> int | None:
        """Return the number of the column with the split; None = there is none."""
        place = self._asked("split", self._options.split_column)
        if place is not None or not self.has_header:
            return place
        return next(
            (other for name in SPLITS if (other := self._usual([name])) is not None and self._tells(other, name)), None
        )

    def _tells(self, place: int, name: str) -> bool:
        """Return whether a column of a usual name holds the parts that images belong to."""
        cells = {row[place].strip().lower() for row in self._rows if place < len(row)} - {""}
        return name in SAID_SPLITS or bool(cells & NAMES.keys())

    def _asked(self, what: str, name: str | None) -> int | None:
        if name is None:
            return None
        if self.has_header and name in self._first:
            return self._first.index(name)
        if name.isdecimal() and 1 <= int(name) <= self._width:
            return int(name) - 1
        columns = self._first if self.has_header else [str(place + 1) for place in range(self._width)]
        raise UsageError(
            f"--{what}-column {name}: {shown(self._source)} has no such column: it has {', '.join(map(shown, columns))}"
            f"{suggestion(name, columns)}"
        )

    def _usual(self, names: Sequence[str]) -> int | None:
        words = [_plain(cell) for cell in self._first] if self.has_header else []
        return next((words.index(name) for name in names if name in words), None)

    def _told(self) -> str:
        columns = ", ".join(self.title(place) for place in range(self._width))
        return f"{shown(self._source)} has the columns {shown(columns)} and does not tell"


def part_of(row: Row, table: Table) -> str:
    """Return the part that a row belongs to.

    Raises:
        DataError: its word means none.
    """
    part = NAMES.get(row.split.lower())
    if part is None:
        raise DataError(
            f"{shown(table.source)}, line {row.line}: {shown(table.columns[-1])} '{shown(row.split)}': must be one of "
            f"{', '.join(NAMES)}; where the parts stand in another column, name it with --split-column"
        )
    return part
