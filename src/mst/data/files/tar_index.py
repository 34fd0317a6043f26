"""Which images a tar file holds and where their bytes begin: its headers are read once, and remembered.

Members are grouped as WebDataset does it: members that follow each other and have the same name up to the first dot of
its last part are one sample. Of a sample the image (`jpg`, `png`, ...) and the label (`cls`, `label`, `json`) count.
The tar formats themselves (ustar, GNU, PAX) are Python's `tarfile`'s.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from mst.data.files.kinds import BY_CONTENT, ENOUGH, SYSTEM, begins_as_image, extension
from mst.data.files.passed import FIRST, Kind, Passed
from mst.data.files.tar_listing import Listed, listed
from mst.errors import DataError, RunFailure
from mst.runtime.names import shown
from mst.runtime.storage.files import write_atomic

FORMAT = 1
FEWEST = 256
"""Images from which a tar file's table is worth remembering."""
BLOCK = 512
LABELS = (b"cls", b"label", b"json")
"""Extensions of members that hold an image's class; the first that is there counts."""
NO_LABEL = len(LABELS)

Integers = npt.NDArray[np.int64]


class TarTable(NamedTuple):
    """The images of a tar file, in its order.

    Attributes:
        starts, sizes: of their bytes in the file: int64 [n].
        names: of the members, one after the other, in the file's encoding (bytes as stored).
        lengths: of the names: int64 [n].
        label_starts, label_sizes: of the members that hold their classes: int64 [n].
        label_kinds: place in `LABELS`; `NO_LABEL` = there is none: int64 [n].
        passed: what the file holds beside them.
    """

    starts: Integers
    sizes: Integers
    names: bytes
    lengths: Integers
    label_starts: Integers
    label_sizes: Integers
    label_kinds: Integers
    passed: tuple[Passed, ...] = ()


class _Member(NamedTuple):
    name: bytes
    key: bytes
    extension: bytes
    info: tarfile.TarInfo


class TarSource(Protocol):
    """A tar file, here or on another machine."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def headers(self) -> BinaryIO:
        """Return the file, to read a few places of."""

    def listing(self) -> bytes | None:
        """Return the text of the list beside it; None = there is none."""


def tar_table(source: TarSource, stamp: Sequence[int | str], wanted: frozenset[bytes], cache: Path | None) -> TarTable:
    """Return the table of a tar file, from memory where it did not change.

    Args:
        source: the file, which is opened if its members are not known.
        stamp: changes whenever the file does, such as its size and time.
        wanted: extensions of images, see `mst.data.files.kinds`.
        cache: where tables are remembered; None = nowhere, as of a file that changes at the moment.

    Raises:
        DataError: no tar file, a damaged or truncated one, or one whose images are links or sparse files.
    """
    name = source.name
    place = None if cache is None else _cache_file(cache, name, wanted)
    said = json.dumps([FORMAT, *stamp])
    known = None if place is None else _recall(place, said)
    if known is not None:
        return known
    try:
        with source.headers() as file:
            text = source.listing()
            members = None if text is None else listed(text, file, name)
            found = _scan(file, name, wanted, members)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{name} cannot be read as a tar file: {' '.join(str(error).split())}") from error
    if place is not None and len(found.starts) >= FEWEST:
        _remember(place, said, found)
    return found


def _scan(file: BinaryIO, name: str, wanted: frozenset[bytes], members: Sequence[Listed] | None) -> TarTable:
    """Read all headers, or take the members as they are listed."""
    found = _Found(name, wanted, file)
    if members is not None:
        found.add_all(map(_info, members))
        return found.table()
    with _opened(file, name) as tar:
        found.add_all(_headers(tar, file))
        _check_end(file, tar.offset, name)
    return found.table()


def _info(member: Listed) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.name)
    info.offset_data, info.size = member.start, member.size
    return info


def _opened(file: BinaryIO, name: str) -> tarfile.TarFile:
    """Open a tar file that is not compressed.

    Raises:
        DataError: it is compressed.
    """
    file.seek(0)
    head = file.read(6)
    packed = next((word for mark, word in COMPRESSED.items() if head.startswith(mark)), None)
    if packed is not None:
        raise DataError(
            f"{name} is a compressed tar file ({packed}), whose members cannot be read by themselves: unpack it "
            f"({UNPACK[packed]}); images are compressed already"
        )
    file.seek(0)
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")


COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
UNPACK = {"gzip": "gzip -dk", "bzip2": "bzip2 -dk", "xz": "xz -dk", "zstd": "zstd -d"}


def _headers(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield all members; plain headers are read here, which takes tarfile twice as long."""
    inside = cast("Any", tar)
    info = tar.next()  # which was read when the file was opened
    while info is not None:
        yield info
        inside.members.clear()  # a million of them would need a gigabyte
        info = None if inside.pax_headers else plain_header(file, inside.offset)
        if info is not None:
            inside.offset = info.offset_data + -(-info.size // BLOCK) * BLOCK
        else:
            file.seek(0)  # tarfile looks whether the file goes that far only where it has to seek
            info = tar.next()


def plain_header(file: BinaryIO, place: int) -> tarfile.TarInfo | None:
    """Return a member by its header; None = tarfile's to read: another kind, a long name, a large or damaged one."""
    file.seek(place)
    block = file.read(BLOCK)
    plain = len(block) == BLOCK and block[156] in b"0\0" and block[257:262] == b"ustar" and not block[345]
    if not plain:
        return None
    name = block[:100].partition(b"\0")[0]
    digits, check = block[124:136].strip(b" \0"), block[148:156].strip(b" \0")
    if not name or name.endswith(b"/") or not (digits.isdigit() and check.isdigit()):
        return None
    try:
        size, said = int(digits, 8), int(check, 8)
    except ValueError:
        return None
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != said:
        return None
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.offset_data = size, place + BLOCK
    return info


def _members(infos: Iterable[tarfile.TarInfo], found: _Found) -> Iterator[_Member]:
    """Yield the members that are files, or should be images."""
    for info in infos:
        if info.isdir():
            continue
        name = os.fsencode(info.name)
        parts = name.split(b"/")
        if parts[-1].startswith(b"."):
            found.passed("hidden", "", name)
        elif any(part.lower() in SYSTEM for part in parts):
            found.passed("system", "", name)
        else:
            stem, _, ending = parts[-1].partition(b".")
            yield _Member(name, b"/".join([*parts[:-1], stem]), ending.lower(), info)


def _check_end(file: BinaryIO, end: int, name: str) -> None:
    """Refuse a tar file that does not end where its members do.

    Raises:
        DataError: it is truncated or damaged, or another one follows.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(end)
    mark = file.read(2 * BLOCK)
    if len(mark) < 2 * BLOCK:
        raise DataError(f"{name} is truncated: it ends after {size} bytes without the end mark of a tar file")
    rest = file.read(1 << 20)
    if mark.strip(b"\0"):
        raise DataError(f"{name} is damaged: at byte {end} neither a member nor the end of the tar file")
    if rest.strip(b"\0"):
        raise DataError(
            f"{name} holds more after its end mark (tar files put one after the other?): make one shard of each"
        )


@dataclass
class _Found:
    """Collects what a tar file holds."""

    name: str
    wanted: frozenset[bytes]
    file: BinaryIO
    rows: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    names: bytearray = field(default_factory=bytearray)
    beside: dict[tuple[Kind, str], tuple[int, tuple[bytes, ...]]] = field(default_factory=dict)
    _chunks: list[Integers] = field(default_factory=list)
    _lone_json: list[bytes] = field(default_factory=list)
    _lone_count: int = 0
    _with_json: bool = False

    def add_all(self, infos: Iterable[tarfile.TarInfo]) -> None:
        """Take all samples."""
        for _, sample in groupby(_members(infos, self), key=lambda member: member.key):
            self.add(list(sample))

    def add(self, sample: list[_Member]) -> None:
        """Take the images of a sample, and its label."""
        images = [member for member in sample if extension(member.name) in self.wanted]
        plain = [member for member in images if member.extension in self.wanted]
        if plain:  # beside x.jpg, x.depth.png is no image of its own
            images = plain
        if not images and BY_CONTENT in self.wanted:
            images = [member for member in sample if self._begins_as_image(member)]
        label = next((m for kind in LABELS for m in sample if m.extension == kind and m.info.isreg()), None)
        kind = NO_LABEL if label is None else LABELS.index(label.extension)
        for member in images:
            self._check(member)
            at = (0, 0) if label is None else (label.info.offset_data, label.info.size)
            self.rows.append((member.info.offset_data, member.info.size, len(member.name), *at, kind))
            self.names += member.name
            self._with_json |= label is not None and label.extension == b"json"
        if len(self.rows) >= 1 << 16:
            self._pack()
        for member in sample:
            if member not in images and member.extension not in LABELS and member.info.isreg():
                self.passed("other", os.fsdecode(extension(member.name)), member.name)
        if label is not None and not images:
            if label.extension == b"json":
                self._lone_json += [label.name] if self._lone_count < FIRST else []
                self._lone_count += 1
            else:
                self.passed("bare", "", label.name)

    def passed(self, kind: Kind, reason: str, name: bytes) -> None:
        """Count what is not taken."""
        count, names = self.beside.get((kind, reason), (0, ()))
        place = os.fsencode(self.name) + b":" + name
        self.beside[kind, reason] = count + 1, (*names, place) if count < FIRST else names

    def table(self) -> TarTable:
        """Return what was found."""
        self._pack()
        columns = np.concatenate([np.zeros((0, 6), np.int64), *self._chunks]).T
        starts, sizes, lengths, label_starts, label_sizes, kinds = (column.copy() for column in columns)
        if self._with_json and self._lone_count:
            for name in self._lone_json:
                self.passed("bare", "", name)
            count, names = self.beside["bare", ""]
            self.beside["bare", ""] = count + self._lone_count - len(self._lone_json), names
        passed = tuple(Passed(*key, count, names) for key, (count, names) in sorted(self.beside.items()))
        return TarTable(starts, sizes, bytes(self.names), lengths, label_starts, label_sizes, kinds, passed)

    def _pack(self) -> None:
        if self.rows:
            self._chunks.append(np.array(self.rows, dtype=np.int64))
            self.rows.clear()

    def _check(self, member: _Member) -> None:
        """Refuse an image whose bytes do not lie in one piece here.

        Raises:
            DataError: it is a link, a sparse or no file.
        """
        info = member.info
        if info.isreg() and not info.issparse():
            return
        kind = "a sparse file" if info.issparse() else "a link" if info.islnk() or info.issym() else "no file"
        advice = "pack the files themselves (tar --dereference --hard-dereference, without --sparse)"
        raise DataError(f"{self.name}: the member {shown(member.name)} is {kind}: {advice}")

    def _begins_as_image(self, member: _Member) -> bool:
        if not member.info.isreg() or member.info.issparse():
            return False
        self.file.seek(member.info.offset_data)
        return begins_as_image(self.file.read(min(ENOUGH, member.info.size)))


def joined(tables: Iterable[TarTable]) -> TarTable:
    """Return the images of several tar files one after the other."""
    found = list(tables)
    names = b"".join(table.names for table in found)
    columns = {key: np.concatenate([getattr(table, key) for table in found]) for key in COLUMNS}
    return TarTable(names=names, passed=tuple(entry for table in found for entry in table.passed), **columns)


COLUMNS = ("starts", "sizes", "lengths", "label_starts", "label_sizes", "label_kinds")


def _cache_file(cache: Path, name: str, wanted: frozenset[bytes]) -> Path:
    parts = [b"tar", os.fsencode(name), *sorted(wanted)]
    return cache / f"{hashlib.blake2b(bytes(1).join(parts), digest_size=16).hexdigest()}.npz"


def _recall(place: Path, stamp: str) -> TarTable | None:
    """Return the table that a file remembers; None if there is none, or of another state of the tar file."""
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as saved:  # a zip archive: it has checksums
            if str(saved["stamp"]) != stamp:
                return None
            columns = {key: saved[key] for key in COLUMNS}
            passed = json.loads(saved["passed"].tobytes())
            entries = tuple(
                Passed(k, reason, many, tuple(map(os.fsencode, names))) for k, reason, many, names in passed
            )
            return TarTable(names=saved["names"].tobytes(), passed=entries, **columns)
    except Exception:  # whatever damaged bytes raise: it is made anew
        return None


def _remember(place: Path, stamp: str, table: TarTable) -> None:
    """Write what `_recall` reads; a disk that refuses is no reason to stop."""
    passed = [(one.kind, one.reason, one.count, [os.fsdecode(name) for name in one.names]) for one in table.passed]
    stream = io.BytesIO()
    np.savez(
        stream,
        stamp=np.array(stamp),
        names=np.frombuffer(table.names, dtype=np.uint8),
        passed=np.frombuffer(json.dumps(passed).encode(), dtype=np.uint8),
        **{key: getattr(table, key) for key in COLUMNS},
    )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, stream.getvalue())
    except (OSError, RunFailure):
        return
