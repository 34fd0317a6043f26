"""The identity of a data set: a record of what it holds that tells data sets apart and is cheap for a million files.

A path and a number of images do not change when every file is replaced. This record does: it has a digest of all names,
of the sizes and contents of an even sample of the files, and of every byte of annotations (labels, masks' classes).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

MOST_SIZES, MOST_READ = 1024, 128
"""Files of a set, at even distances, of which the sizes count; and of which the contents count."""
PIECE = 1 << 15
"""Bytes that are read at the beginning and at the end of a file for its contents."""
CONTENTS = "contents of the data"
"""Key of the data's digest in a training's identity; also its name in messages: `other contents of the data`."""
GROUP = 4096
"""Names that are hashed in one call."""
LETTERS = 32
"""Hexadecimal digits of a digest that are kept: 128 bits."""
WORDS = {
    "split": "another split into training and validation",
    "names": "other file names",
    "files": "other files under the same names",
    "annotations": "other annotations or labels",
}
"""Part of an identity -> what has changed if the part differs."""


@dataclass(frozen=True)
class DataIdentity:
    """What a data set holds.

    Attributes:
        name: its absolute path, or another name for data in memory; not compared, so two copies are equal.
        count: images.
        digest: of count and parts: equal for two copies of the same data.
        parts: digests of `names`, `files` and `annotations`; parts that a set lacks are absent.
    """

    name: str = field(compare=False)
    count: int
    digest: str
    parts: Mapping[str, str] = field(default_factory=dict, compare=False)

    def row(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)

    @staticmethod
    def from_row(row: object) -> DataIdentity | None:
        """Return the record of `row()`; None for anything else, such as the files of older versions."""
        if not isinstance(row, Mapping):
            return None
        name, count, digest, parts = (row.get(key) for key in ("name", "count", "digest", "parts"))
        if not isinstance(name, str) or not isinstance(digest, str) or not digest or not isinstance(parts, Mapping):
            return None
        if isinstance(count, bool) or not isinstance(count, int):
            return None
        return DataIdentity(name, count, digest, {str(key): str(value) for key, value in parts.items()})


def identify(
    name: str,
    names: Iterable[bytes],
    *,
    count: int,
    files: Sequence[str | Path | bytes] = (),
    contents: Iterable[bytes] | None = None,
    annotations: Iterable[bytes | Path] = (),
) -> DataIdentity:
    """Return the identity of a data set.

    Args:
        name: where it lies, or what it is called.
        names: of all images, in their order and relative to the set's folder (see `relative_names`), so that a copy
            elsewhere is the same data.
        count: images.
        files: paths of all files, images and masks, or of an even sample (see `sample_positions`); of these the sizes
            of at most 1024 and the contents of at most 128 count. A file that cannot be read counts as unreadable.
        contents: for images that are no files, in place of `files`: the bytes of an even sample of them.
        annotations: files of annotations, read whole; and bytes, such as labels and the names of classes.
    """
    parts = {"names": _names_digest(names)}
    if len(files):
        parts["files"] = _files_digest(files)
    elif contents is not None:
        parts["files"] = _digest(contents)
    described = list(annotations)
    if described:
        parts["annotations"] = _described(described)
    return _identity(name, count, parts)


def together(name: str, *identities: DataIdentity) -> DataIdentity:
    """Return the identity of several sets as one, such as a training and a validation set."""
    kinds = dict.fromkeys(kind for identity in identities for kind in identity.parts)
    parts = {
        kind: _digest(identity.parts.get(kind, "").encode() + b"%d" % identity.count for identity in identities)
        for kind in kinds
    }
    return _identity(name, sum(identity.count for identity in identities), parts)


def annotated(identity: DataIdentity, annotations: Iterable[bytes | Path]) -> DataIdentity:
    """Return the identity of images together with their annotations, which are given as to `identify`."""
    return _identity(identity.name, identity.count, {**identity.parts, "annotations": _described(annotations)})


def with_split(identity: DataIdentity, split: Mapping[str, Any]) -> DataIdentity:
    """Return the identity of images together with how they were divided into training and validation."""
    said = f"{split['how']} {split['part']} share {split['share']} seed {split['seed']}".encode()
    return _identity(identity.name, identity.count, {**identity.parts, "split": _digest([said])})


def difference(before: DataIdentity, now: DataIdentity) -> str:
    """Return in words what differs: "17 images, not 16", "other file names"; "" if nothing does."""
    if before.digest == now.digest:
        return ""
    if before.count != now.count:
        return f"{now.count} images, not {before.count}"
    differ = [part for part in WORDS if before.parts.get(part) != now.parts.get(part)]
    follow = {"files": "names", "names": "split", "annotations": "split"}  # from another difference
    found = [WORDS[part] for part in differ if follow.get(part) not in differ]
    return " and ".join(found) or "other contents"


def relative_names(paths: Sequence[bytes]) -> list[bytes]:
    """Return paths without the folder that all of them share."""
    if not paths:
        return []
    first, last = min(paths), max(paths)
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first.rfind(b"/", 0, same) + 1
    return [path[start:] for path in paths]


def sample_positions(count: int, most: int = MOST_SIZES) -> list[int]:
    """Return at most `most` of the positions 0..count-1, at even distances, ascending."""
    chosen = min(count, most)
    return [position * count // chosen for position in range(chosen)]


def _identity(name: str, count: int, parts: Mapping[str, str]) -> DataIdentity:
    described = [b"%d" % count, *(f"{kind} {digest}".encode() for kind, digest in sorted(parts.items()))]
    return DataIdentity(name, count, _digest(described), dict(parts))


def _digest(parts: Iterable[bytes]) -> str:
    """Return a digest of the parts and of where each ends: ["ab", "c"] and ["a", "bc"] differ."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.hexdigest()[:LETTERS]


def _described(annotations: Iterable[bytes | Path]) -> str:
    return _digest(part if isinstance(part, bytes) else _content(part) for part in annotations)


def _names_digest(names: Iterable[bytes]) -> str:
    """Return a digest of names, which hold no zero byte; they are hashed `GROUP` at a time, which bounds the memory."""
    found, rest = hashlib.sha256(), iter(names)
    while group := list(islice(rest, GROUP)):
        found.update(b"\0".join(group) + b"\0")
    return found.hexdigest()[:LETTERS]


def _files_digest(files: Sequence[str | Path | bytes]) -> str:
    """Return a digest of the sizes of an even sample, and of the contents of a smaller one."""
    sized = [files[position] for position in sample_positions(len(files))]
    read = set(sample_positions(len(sized), MOST_READ))
    return _digest(
        part for position, path in enumerate(sized) for part in _size_and_content(path, read=position in read)
    )


def _size_and_content(path: str | Path | bytes, *, read: bool) -> tuple[bytes, bytes]:
    """Return a file's size and, if `read`, its beginning and end; for what is no file, only that it is none."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return b"no file", b""
        return b"%d" % found.st_size, _ends(path, found.st_size) if read else b""
    except (OSError, ValueError):
        return b"unreadable", b""


def _ends(path: str | Path | bytes, size: int) -> bytes:
    with open(path, "rb") as file:
        beginning = file.read(PIECE)
        file.seek(max(len(beginning), size - PIECE))
        return beginning + file.read(PIECE)


def _content(path: Path) -> bytes:
    """Return a digest of a file's bytes; for an unreadable file, only that it is unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b"unreadable"
