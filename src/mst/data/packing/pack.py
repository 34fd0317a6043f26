"""Packing a set of images into balanced shards: resumable at any moment, with the same bytes at the end.

`pack.json` in the folder says what is packed and which shards are done. A shard is written beside its place, read back,
noted, and then renamed: a kill leaves a note without a file, which is written again, or neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mst.data.background import read_in_threads
from mst.data.files.tar_listing import beside
from mst.data.inspection.places import PlaceNotes, Places
from mst.data.order.room import fetch_soon
from mst.data.packing.encoding import Encoding, Packed, pack_image
from mst.data.packing.shards import Entry, check_format, verify, writer
from mst.data.sources import ImageSource
from mst.errors import DataError, RunFailure, UsageError
from mst.runtime.names import shown
from mst.runtime.storage.files import aside_of, check_folder, remove_asides, sync_folder, write_atomic

NOTES, CLASSES, UNREADABLE = "pack.json", "classes.txt", "unreadable.txt"
VERSION = 1
PER_SHARD = 5000
"""Images of a shard where nothing is asked for."""
AHEAD = 64
Format = Literal["tar", "parquet"]
Progress = Callable[[Iterator[Packed], int], Iterable[Packed]]


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        form: of the shards.
        shards: number of them, of each part; None = by `shard_size`.
        shard_size: images of one, at most; None = `PER_SHARD`.
        seed: of the order; None = the source's.
        encoding: what becomes of an image.
        workers: threads; they change nothing.
    """

    form: Format = "tar"
    shards: int | None = None
    shard_size: int | None = None
    seed: int | None = None
    encoding: Encoding = field(default_factory=Encoding)
    workers: int = 2


@dataclass(frozen=True)
class _Shard:
    """One shard to write: its file's name, and the positions of its images in the source; `first` numbers its keys."""

    name: str
    positions: npt.NDArray[np.int64]
    first: int


def pack(
    images: ImageSource, out: Path, options: PackOptions, progress: Progress | None = None, roots: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write images into shards; those that are there already stay.

    Class folders become numbers of classes (`cls` members, column `label`) and `classes.txt`; folders called train, val
    and test become shards of these names.

    Args:
        images: to pack.
        out: folder for the shards.
        options: how.
        progress: is given the images as they come and how many there will be, and hands them on.
        roots: the folders that the images were searched in: lists and COCO files in one may say what is train and val.

    Returns:
        images, packed, unreadable (list of {path, reason}), shards (list of {name, images, bytes}), classes (names),
        changed (encoded anew), deep (more than 8 bits, left as they are), bytes, written (shards of this call), masks
        (in folders of annotations, left out).

    Raises:
        UsageError: the folder holds something else, or another packing.
        DataError: no image can be read.
        RunFailure: the disk refused, or a shard is not as it was written.
    """
    check_format(options.form)
    check_folder(out, "OUT")
    fetch_soon(images)
    places = _places(images, roots)
    shards = _divided(places, options)
    said = _said(images, places, options, shards)
    done = _done(out, said, shards)
    out.mkdir(parents=True, exist_ok=True)
    remove_asides(out)
    rows: list[dict[str, Any]] = [done[shard.name] for shard in shards if shard.name in done]
    waiting = [shard for shard in shards if shard.name not in done]
    _note(out, said, rows)  # before all else: whose the other files are
    if places.classes:
        write_atomic(out / CLASSES, "".join(f"{name}\n" for name in places.classes))
    look = partial(pack_image, images, encoding=options.encoding)
    order = np.concatenate([np.zeros(0, np.int64), *(shard.positions for shard in waiting)]).tolist()
    read = read_in_threads(look, order, options.workers, ahead=AHEAD)
    found = iter(read if progress is None else progress(read, len(order)))
    for shard in waiting:
        rows.append(_write(out, shard, places, options, found))
        rows.sort(key=lambda row: str(row["name"]))
        _note(out, said, rows)
        aside_of(out / shard.name).replace(out / shard.name)
        sync_folder(out)
    return _summary(out, rows, places, len(images), len(waiting))


def _summary(out: Path, rows: Sequence[dict[str, Any]], places: Places, images: int, written: int) -> dict[str, Any]:
    """Write down what could not be read, and return what `pack` returns.

    Raises:
        DataError: nothing could.
    """
    unreadable = [entry for row in rows for entry in row["unreadable"]]
    write_atomic(out / UNREADABLE, "".join(f"{entry['path']}\t{entry['reason']}\n" for entry in unreadable))
    counted = {key: sum(row[key] for row in rows) for key in ("changed", "deep", "bytes")}
    counted |= {"images": images, "packed": sum(row["images"] for row in rows), "written": written}
    if unreadable and not counted["packed"]:
        first = f"{shown(unreadable[0]['path'])}: {unreadable[0]['reason']}"
        raise DataError(f"none of {images} images can be packed, the first: {first} (all: {shown(out / UNREADABLE)})")
    return {
        **counted,
        "masks": int(places.masks.sum()),
        "unreadable": unreadable,
        "shards": [{key: row[key] for key in ("name", "images", "bytes")} for row in rows],
        "classes": list(places.classes),
    }


def _places(images: ImageSource, roots: Sequence[Path]) -> Places:
    """Return where the images belong."""
    notes = PlaceNotes()
    for position in range(len(images)):
        notes.add(images.name(position))
    return notes.places(roots).with_labels(images)


def _note(out: Path, said: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write which shards are done."""
    write_atomic(out / NOTES, json.dumps({**said, "done": rows}, indent=1) + "\n")


def _divided(places: Places, options: PackOptions) -> list[_Shard]:
    """Divide the images into shards whose numbers of images differ by one at most, part by part."""
    found: list[_Shard] = []
    first = 0
    for number, part in enumerate(places.parts):
        positions = np.flatnonzero((places.part == number) & ~places.masks).astype(np.int64)
        if options.seed is not None:
            positions = np.random.default_rng([options.seed, number]).permutation(positions)
        if not len(positions):
            continue
        count = options.shards or -(-len(positions) // (options.shard_size or PER_SHARD))
        if count > len(positions):
            raise UsageError(f"--shards {count}: there are {len(positions)} images, at most one shard for each")
        digits = max(5, len(str(count - 1)))
        for shard in range(count):
            begin, end = (len(positions) * at // count for at in (shard, shard + 1))
            name = f"{part or 'shard'}-{shard:0{digits}}.{options.form}"
            found.append(_Shard(name, positions[begin:end], first + begin))
        first += len(positions)
    return found


def _said(images: ImageSource, places: Places, options: PackOptions, shards: list[_Shard]) -> dict[str, Any]:
    """Return what is packed and how, as JSON types: a packing that goes on must say the same."""
    settings = asdict(replace(options, workers=0))
    del settings["workers"]
    identity = images.fingerprint("").row()
    return {
        "version": VERSION,
        "settings": settings,
        "data": identity,
        "classes": list(places.classes),
        "shards": [[shard.name, len(shard.positions)] for shard in shards],
    }


def _done(out: Path, said: dict[str, Any], shards: list[_Shard]) -> dict[str, dict[str, Any]]:
    """Return the notes of the shards that are there.

    Raises:
        UsageError: the folder holds files of these names that are not noted, or another packing.
    """
    notes: dict[str, Any] = {}
    if (out / NOTES).exists():
        try:
            notes = json.loads((out / NOTES).read_text(encoding="utf-8"))
            rows = {str(row["name"]): row for row in notes["done"]}
            same = {key: notes[key] for key in said} == json.loads(json.dumps(said))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{shown(out / NOTES)} is no note of mst pack: name another folder") from error
        if not same:
            raise UsageError(
                f"{shown(out)} holds a packing of other images, or with other options: name another folder, or give the"
                " same images and options to go on"
            )
    else:
        rows = {}
    names = [shard.name for shard in shards]
    if not notes:
        names += [CLASSES, UNREADABLE, *map(beside, names if said["settings"]["form"] == "tar" else [])]
    foreign = next((name for name in names if (out / name).exists() and (not notes or name not in rows)), None)
    if foreign is not None:
        raise UsageError(f"{shown(out / foreign)} is there and was not written by this packing: name another folder")
    for name, row in rows.items():
        path = out / name
        if path.exists() and path.stat().st_size != row["bytes"]:
            raise UsageError(f"{shown(path)} was changed since it was packed: move it away, and it is packed again")
    return {name: row for name, row in rows.items() if (out / name).exists()}


def _write(out: Path, shard: _Shard, places: Places, options: PackOptions, found: Iterator[Packed]) -> dict[str, Any]:
    """Write a shard beside its place and read it back; return its note."""
    aside = aside_of(out / shard.name)
    classes = places.classes or None
    expected: list[tuple[str, str, int | None]] = []
    unreadable: list[dict[str, str]] = []
    changed = deep = 0
    try:
        file = writer(options.form, aside, classes)
        for number, position in enumerate(shard.positions.tolist()):
            packed = next(found, None)
            if packed is None:
                raise RunFailure(f"stopped before {shown(shard.name)} was whole: run the same again to go on")
            if packed.reason:
                unreadable.append({"path": shown(packed.name), "reason": packed.reason})
                continue
            label = int(places.label[position])
            entry = Entry(f"{shard.first + number:09}", label if label >= 0 else None, packed)
            file.add(entry)
            expected.append((f"{entry.key}.{packed.extension}", packed.digest, entry.label))
            changed, deep = changed + packed.changed, deep + packed.deep
        members = file.close()
    except OSError as error:
        raise RunFailure(f"cannot write {shown(out / shard.name)}: {error.strerror or error}") from error
    verify(options.form, aside, shard.name, expected)
    if members is not None:
        write_atomic(out / beside(shard.name), members)
    note: dict[str, Any] = {"name": shard.name, "images": len(expected), "bytes": os.stat(aside).st_size}
    return {**note, "changed": changed, "deep": deep, "unreadable": unreadable}
