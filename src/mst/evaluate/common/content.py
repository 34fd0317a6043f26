"""The identity of a labelled set: from its names and a sample of its files, so that other contents are noticed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mst.runtime.identity import DataIdentity, identify, relative_names
from mst.runtime.logging import warn
from mst.runtime.names import shown

PIECE = 1 << 12
"""Bytes at the beginning and at the end of a file: enough to tell most files of equal size apart."""


def identity_of_files(
    names: Sequence[str], *, files: Sequence[Path] = (), annotations: Iterable[Path | bytes] = (), title: str = ""
) -> DataIdentity:
    """Return the identity of a set that is read from files: the same wherever the files lie.

    Args:
        names: of the images; where they are paths, without the folder that they share.
        files: images and masks.
        annotations: files of which every byte counts (annotations, lists), and bytes such as labels.
        title: what the set is called.
    """
    encoded = [os.fsencode(name) for name in names]
    return identify(title, relative_names(encoded), count=len(names), files=files, annotations=annotations)


def identity_of_values(
    names: Sequence[str], values: Iterable[Any], *, annotations: Iterable[bytes] = (), title: str = ""
) -> DataIdentity:
    """Return the identity of a set in memory, from its names and arrays or tensors of some of its images."""
    digest = hashlib.sha256()
    for value in values:
        array = value.numpy() if hasattr(value, "numpy") else value
        digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
    described = [digest.digest(), *annotations]
    return identify(title, [os.fsencode(name) for name in names], count=len(names), annotations=described)


def tell_shared(train: Sequence[Path], val: Sequence[Path]) -> None:
    """Warn of images that are in both sets, even under other names: scores on them say nothing about new images."""
    shared = shared_files(train, val)
    if shared:
        first, second = shared[0]
        names = shown(second) if first == second else f"{shown(second)} is {shown(first)}"
        warn(
            f"{len(shared)} of {len(val)} validation images are training images as well, the first: {names}: results "
            "on them say nothing of new images"
        )


def shared_files(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return pairs of files of the same content, one from each set, in the order of the second.

    Files of equal size are compared by beginning and end; where these are equal, by all their bytes.
    """
    same = [[*second], [*first]]
    for key in (_size, _ends, _whole):
        wanted, known = ({path: key(path) for path in paths} for paths in same)
        common = {*wanted.values()} & {*known.values()} - {None}
        same = [[path for path in keys if keys[path] in common] for keys in (wanted, known)]
    holder = {key: path for path, key in reversed(known.items())}
    return [(holder[wanted[path]], path) for path in dict.fromkeys(second) if wanted.get(path) in common]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _ends(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            beginning = file.read(PIECE)
            file.seek(max(len(beginning), os.fstat(file.fileno()).st_size - PIECE))
            return b"%d " % os.fstat(file.fileno()).st_size + beginning + file.read(PIECE)
    except OSError:
        return None


def _whole(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
