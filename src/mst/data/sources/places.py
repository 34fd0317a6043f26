"""What a word of `--data.train` names: weights (`path@2`), patterns of shards, folders of shards, addresses."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mst.data.files.kinds import extension
from mst.errors import DataError, UsageError
from mst.paths import is_address, like_named, user_path
from mst.runtime.names import shown

Source = str | bytes | os.PathLike[str] | os.PathLike[bytes]
WEIGHT = re.compile(r"(?P<place>.+)@(?P<weight>[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+|nan|inf))", re.IGNORECASE)
LARGEST_WEIGHT = 1000.0
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
COLUMN = re.compile(r"(.+\.(?:parquet|arrow)):([^/]+)", re.IGNORECASE)
MOST_SHARDS = 10**6
TAR, PARQUET, ARROW = b"tar", b"parquet", b"arrow"
SHARDS = frozenset({TAR, PARQUET, ARROW})
PACKED = (b".tar.gz", b".tgz", b".tar.bz2", b".tbz2", b".tar.xz", b".txz", b".tar.zst", b".tzst", b".tar.lz4")


class Place(NamedTuple):
    """A source, and how often an epoch of a pre-training shows its images."""

    source: Source
    weight: float = 1.0
    weighted: bool = False


def weighted_place(source: Source) -> Place:
    """Take the weight off a source, `path@2`; a file that has such a name is itself.

    Raises:
        UsageError: a weight of zero, less or too much, or one that is no number.
    """
    text = os.fsdecode(source) if isinstance(source, str | bytes | os.PathLike) else ""
    match = WEIGHT.fullmatch(text)
    if match is None or (not is_address(text) and os.path.lexists(text)):
        return Place(source)
    weight = float(match["weight"])
    if not 0 < weight <= LARGEST_WEIGHT:
        what = "leave the source away" if weight == 0 else "give another"
        allowed = f"it must be more than 0 and at most {LARGEST_WEIGHT:g}"
        raise UsageError(f"{shown(text)}: a weight of {match['weight']}: {allowed}: {what}")
    return Place(match["place"], weight, True)


def with_column(text: str) -> tuple[str, str]:
    """Take the name of a column off a parquet or Arrow file, `x.parquet:image`."""
    match = COLUMN.fullmatch(text)
    return (match[1], match[2]) if match is not None and not os.path.lexists(text) else (text, "")


def has_braces(text: str) -> bool:
    """Return whether a text is a pattern of braces: {000..127} or {a,b}."""
    return any(RANGE.fullmatch(inside) or "," in inside for inside in BRACES.findall(text))


def expanded(text: str) -> list[str]:
    """Return the names that a pattern of braces means, in its order, as bash does it.

    Raises:
        UsageError: more than `MOST_SHARDS`.
    """
    parts = BRACES.split(text)
    choices = [[part] if number % 2 == 0 else _inside(part) for number, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_SHARDS:
        raise UsageError(f"{shown(text)} means {count} files, at most {MOST_SHARDS} are understood")
    return ["".join(found) for found in itertools.product(*choices)]


def _inside(text: str) -> Sequence[str]:
    match = RANGE.fullmatch(text)
    if match is None:
        return text.split(",") if "," in text else ["{" + text + "}"]
    first, last = int(match[1]), int(match[2])
    width = max(len(match[1]), len(match[2])) if "0" in {match[1][0], match[2][0]} else 0
    count = abs(last - first) + 1
    if count > MOST_SHARDS:
        raise UsageError(f"{{{text}}} means {count} files, at most {MOST_SHARDS} are understood")
    step = 1 if last >= first else -1
    return [f"{number:0{width}}" for number in range(first, last + step, step)]


def local_files(source: Source) -> list[str] | None:
    """Return the shards on this machine that a word names by itself or by a pattern; None = it names none.

    Raises:
        UsageError: a pattern that no file has, files of a pattern that are missing, or a compressed tar file.
    """
    text = os.fsdecode(source)
    path = str(user_path(source))
    low = os.fsencode(path).lower()
    if low.endswith(PACKED) and os.path.isfile(path):
        raise UsageError(
            f"{shown(path)} is a compressed tar file, whose members cannot be read by themselves: unpack it (gzip -dk"
            " and the like); images are compressed already"
        )
    if extension(low) not in SHARDS:
        return None
    if os.path.lexists(path):
        return None if os.path.isdir(path) else [os.path.abspath(path)]
    if has_braces(text):
        return _all_there(text, [os.path.abspath(name) for name in expanded(path)])
    if glob.has_magic(path):
        found = sorted(map(os.fsencode, glob.glob(path)))
        if not found:
            raise UsageError(f"no file has a name like {shown(text)}")
        return [os.path.abspath(os.fsdecode(name)) for name in found]
    raise UsageError(
        f"{shown(path)} does not exist{like_named(path)}: "
        "give a file of images, or a pattern such as shards-{000..127}.tar"
    )


def _all_there(text: str, paths: list[str]) -> list[str]:
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise UsageError(
            f"{shown(text)}: {len(missing)} of {len(paths)} files do not exist, the first: {shown(missing[0])}: "
            "correct the pattern, or fetch them"
        )
    return paths


def shards_in(folder: Path) -> list[str]:
    """Return the shards in a folder, at any depth, sorted by path; those of one kind only.

    Raises:
        DataError: there are tar and parquet files.
    """
    found = sorted(_walk(folder))
    kinds = {extension(path) for path in found}
    if len(kinds) > 1:
        names = ", ".join(f".{kind.decode()}" for kind in sorted(kinds))
        raise DataError(f"{shown(folder)} holds shards of several kinds ({names}): name those that count, by a pattern")
    return [os.fsdecode(path) for path in found]


def _walk(folder: Path) -> Iterator[bytes]:
    for place, folders, names in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in names:
            if extension(name) in SHARDS and not name.startswith(b"."):
                yield os.path.join(place, name)
