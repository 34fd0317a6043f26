"""Labels by table: its rows become images that are there, one label each, in the parts that a column may name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import torch

from mst.data.files.kinds import COMMON, EXTENSIONS, extension
from mst.data.files.passed import FIRST, Passed, PassedOver, short
from mst.data.labels.record import FoundLabels, LabelledImages, LabelOptions, Part, scored_part
from mst.data.labels.table import Row, Table, part_of, read_table
from mst.data.sources import ImageIndex
from mst.errors import DataError, UsageError
from mst.paths import is_address
from mst.runtime import logging
from mst.runtime.names import shown

MOST_MISSING = 0.05
"""Share of the listed files that may be missing: more, and the paths rather than some files are wrong."""
NO_NUMBER = "nan"
"""What programs write for a number that is not there: no class."""
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\]")


@dataclass
class _Image:
    """A listed file that is there.

    Attributes:
        label: of it.
        part: "train", "val", "test", or "" where the table has no split.
        line: that said so first.
    """

    label: str
    part: str
    line: int


def labelled_by_table(source: str, folder: Path | None, options: LabelOptions) -> FoundLabels:
    """Return the images that a table lists, class by class.

    A row without a label and a row that repeats another are left out, and it is said; a file that is missing likewise,
    up to 5 % of them.

    Args:
        source: path or address of the table.
        folder: that paths are relative to; where a file is not there, the table's own folder counts. None = that only.
        options: columns, and which part is scored.

    Raises:
        UsageError: the table cannot be read, or a column that was asked for is missing.
        DataError: no or too many files missing, two labels for one file, no labels, a part or class without images.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"--data {shown(folder)} is no folder: give the one that the paths in --labels are relative to"
        )
    table = read_table(source, options)
    found, passed = _images(table, folder)
    labels = f"{shown(PurePath(source).name)}, column {shown(table.columns[1])}"
    classes = _classes({image.label for image in found.values()})
    if not table.has_split:
        parts: dict[Part, LabelledImages] = {"train": _labelled(found, classes)}
        return FoundLabels(shown(source), classes, parts, "", passed, {"train": shown(source)}, labels)
    return replace(_by_column(table, found, options, passed), labels=labels)


def _by_column(table: Table, found: dict[bytes, _Image], options: LabelOptions, passed: PassedOver) -> FoundLabels:
    """Divide the images as the table's column says."""
    name, origin = table.columns[-1], shown(table.source)
    there: dict[str, dict[bytes, _Image]] = {"train": {}, "val": {}, "test": {}}
    for path, image in found.items():
        there[image.part][path] = image
    if not there["train"]:
        raise DataError(f"{origin}: no row's {shown(name)} is train: images to learn from are needed")
    part = scored_part([part for part in ("train", "val", "test") if there[part]], options.split, origin)
    classes = _classes({image.label for image in there["train"].values()})
    train = _labelled(there["train"], classes)
    if part is None:
        return FoundLabels(origin, classes, {"train": train}, "", passed, {"train": f"{origin} (train)"})
    unknown = _classes({image.label for image in there[part].values()} - set(classes))
    if unknown:
        raise DataError(
            f"{origin}: {len(unknown)} class{'es' * (len(unknown) > 1)} of {part} ha{'ve' if len(unknown) > 1 else 's'}"
            f" no training image: {', '.join(map(shown, unknown[:5]))}{', ...' * (len(unknown) > 5)}"
        )
    parts: dict[Part, LabelledImages] = {"train": train, part: _labelled(there[part], classes)}
    return FoundLabels(origin, classes, parts, "column", passed, {name: f"{origin} ({name})" for name in parts})


def _classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in order; numbers by size."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    return tuple(sorted(numbers, key=lambda name: (numbers[name], name)))


def _labelled(images: dict[bytes, _Image], classes: tuple[str, ...]) -> LabelledImages:
    number = {name: position for position, name in enumerate(classes)}
    order = sorted(images, key=lambda path: (number[images[path].label], path))
    labels = torch.tensor([number[images[path].label] for path in order], dtype=torch.int64)
    return LabelledImages(ImageIndex.of(order), labels)


def _images(table: Table, folder: Path | None) -> tuple[dict[bytes, _Image], PassedOver]:
    """Find the rows' files."""
    places, found = _Places(table, folder), dict[bytes, _Image]()
    missing: list[Row] = []
    unlabelled: list[Row] = []
    repeated: list[Row] = []
    paths = [places.find(row.path) for row in table.rows]
    if not any(paths):  # none is where it should be
        paths = [places.below(row.path) for row in table.rows]
    for row, path in zip(table.rows, paths, strict=True):
        if path is None:
            missing.append(row)
            continue
        if not row.label or row.label.lower() == NO_NUMBER:
            unlabelled.append(row)
            continue
        image = _Image(row.label, part_of(row, table) if table.has_split else "", row.line)
        before = found.setdefault(path, image)
        if before is not image:
            _refuse_conflict(table, row, before, image)
            repeated.append(row)
    passed = _missing(table, missing, places)
    if not found:
        raise DataError(f"{shown(table.source)}: no row has a label in column {shown(table.columns[1])}")
    for rows, what in ((unlabelled, "without a label"), (repeated, "that repeat another")):
        if rows:
            count = f"{len(rows)} of {len(table.rows)} rows {what}, the first in line {rows[0].line}"
            logging.warn(f"{shown(table.source)}: left out {count}")
    if places.moved:
        logging.info(f"{shown(table.source)}: {places.moved}")
    return found, passed


def _refuse_conflict(table: Table, row: Row, before: _Image, now: _Image) -> None:
    """Refuse two rows that say different things of one file.

    Raises:
        DataError: they do.
    """
    for what, first, second in (("labels", before.label, now.label), ("parts", before.part, now.part)):
        if first != second:
            raise DataError(
                f"{shown(table.source)}: {shown(row.path)} has two {what}: {shown(first)} in line {before.line},"
                f" {shown(second)} in line {row.line}: keep one"
            )


def _missing(table: Table, rows: list[Row], places: _Places) -> PassedOver:
    """Count the rows whose file is missing.

    Raises:
        DataError: they are too many.
    """
    if not rows:
        return PassedOver()
    first = short(os.fsencode(rows[0].path.encode("utf-8", "surrogateescape")))
    if len(rows) > MOST_MISSING * len(table.rows):
        raise DataError(
            f"{shown(table.source)}: {len(rows)} of {len(table.rows)} listed files do not exist, at most"
            f" {MOST_MISSING:.0%} may: the first, in line {rows[0].line}, is {first}, looked for in"
            f" {places.looked_in}: name the folder that the paths are relative to with --data"
        )
    names = tuple(os.fsencode(row.path) for row in rows[:FIRST])
    reason = f"of {len(table.rows)} in {shown(table.source)}"
    return PassedOver((Passed("missing", reason, len(rows), names),))


class _Places:
    """Finds the files that paths in a table mean.

    Attributes:
        moved: where absolute paths of another machine were read otherwise: says how; else "".
    """

    def __init__(self, table: Table, folder: Path | None) -> None:
        if folder is None and is_address(table.source):
            raise UsageError(f"{shown(table.source)} lists images by paths: name the folder that has them with --data")
        own = folder if folder is not None and is_address(table.source) else Path(table.source).parent
        self._bases = [Path(os.path.abspath(base)) for base in dict.fromkeys([folder or own, own])]
        self._known: dict[PurePath, set[str]] = {}
        self._ends: Counter[str] = Counter()
        self.moved = ""
        self._dropped: int | None = None
        self._by_name: dict[str, str] | None = None

    @property
    def looked_in(self) -> str:
        """The folders that paths are relative to."""
        return " and ".join(map(shown, self._bases))

    def find(self, written: str) -> bytes | None:
        """Return the absolute path of the file; None = there is none."""
        plain = written.replace("\\", "/")
        for text in dict.fromkeys((written, plain)):
            for base in self._bases:
                path = os.path.normpath(base / os.path.expanduser(text))
                if (found := self._there(path)) is not None:
                    return found
        foreign = plain.startswith("/") or DRIVE.match(written) is not None
        return self._elsewhere(written, plain) if foreign else None

    def below(self, name: str) -> bytes | None:
        """Find a bare name at any depth below the first folder, where only one image has it."""
        if "/" in name or "\\" in name:
            return None
        if self._by_name is None:
            self._by_name = {}
            for folder, inner, names in os.walk(self._bases[0]):
                inner[:] = [each for each in inner if not each.startswith(".")]
                for each in names:
                    if extension(os.fsencode(each)) in EXTENSIONS:
                        self._by_name[each] = "" if each in self._by_name else os.path.join(folder, each)
        found = self._by_name.get(name)
        if not found:
            return None
        self.moved = self.moved or f"names without a folder are found below {shown(self._bases[0])}: {shown(found)}"
        return os.fsencode(found)

    def _elsewhere(self, written: str, plain: str) -> bytes | None:
        """Find an absolute path of another machine below a folder of this one, by as much of its end as there is."""
        parts = [part for part in plain.split("/") if part]
        drops = range(1, len(parts)) if self._dropped is None else (self._dropped,)
        for dropped in drops:
            for base in self._bases:
                found = self._there(os.path.normpath(base.joinpath(*parts[dropped:]))) if parts[dropped:] else None
                if found is not None:
                    if self._dropped is None:
                        self._dropped = dropped
                        self.moved = f"paths of another machine: {shown(written)} is read as {shown(found)}"
                    return found
        return None

    def _there(self, path: str) -> bytes | None:
        """Return a path if a file is there, or one of that name with the end of an image's."""
        encoded = os.fsencode(path) if _is_encodable(path) else None
        if encoded is None:
            return None
        if self._is_file(path):
            return encoded
        if extension(encoded) in EXTENSIONS:
            return None
        for end in self._usual_ends():
            if self._is_file(f"{path}.{end}"):
                self._ends[end] += 1
                return os.fsencode(f"{path}.{end}")
        return None

    def _usual_ends(self) -> Iterator[str]:
        """Yield ends of images' names, those that were found first."""
        yield from dict.fromkeys((*(end for end, _ in self._ends.most_common()), *COMMON, "JPG", "JPEG", "PNG"))

    def _is_file(self, path: str) -> bool:
        """Look into the listing of the file's folder, which is read once."""
        folder, name = os.path.split(path)
        place = PurePath(folder)
        if place not in self._known:
            try:
                with os.scandir(folder) as entries:
                    self._known[place] = {entry.name for entry in entries if not entry.is_dir()}
            except (OSError, ValueError):
                self._known[place] = set()
        return name in self._known[place]


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return "\0" not in path
