"""Where the annotation file of a split and its images lie, in the layouts that annotation tools export.

Layouts: COCO's own (cocodataset.org), Roboflow (`train/_annotations.coco.json`, images beside it) and Label Studio
(`result.json`, names such as `images/x.png` or `images\\x.png`). No folder is believed for its name alone: it has to
hold the files.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from mst.errors import DataError
from mst.paths import user_path
from mst.runtime.names import shown

SPLITS = (
    ("train", "train2017", "train2014", "training"),
    ("val", "val2017", "val2014", "valid", "validation"),
    ("test", "test2017", "test2014", "testing"),
)
"""Names that mean the same part of a data set, a row a part."""
SAMPLE = 256
"""Names of a file, evenly spread, by which the folder of its images is chosen."""
DEEPEST = 16
"""Last parts of a path that are tried, at most."""
NOWHERE = 1 << 30
"""The rank of a folder that holds fewer than half of the names."""


class Places(NamedTuple):
    """Folders where the images of an annotation file may lie.

    Attributes:
        near: beside the file, or with the name of its part of the data set; the nearest first.
        guessed: with names of other parts. If two of them hold files of the same names, none is taken.
    """

    near: tuple[Path, ...]
    guessed: tuple[Path, ...] = ()


def find_coco(root: str | Path, split: str) -> tuple[Path, Places]:
    """Return the annotation file of a split and the folders where its images may lie.

    Args:
        root: a folder with `annotations/instances_<split>.json` (COCO's `instances_<split>2017.json` too) or
            `<split>/_annotations.coco.json`, or an annotation file itself.
        split: train or val (`valid` means the same).

    Raises:
        DataError: no such file; the message lists where was looked.
    """
    root = user_path(root)
    if root.is_file():
        return root, places_of(root, split)
    names = _same_part(split)
    files = [root / "annotations" / f"instances_{name}.json" for name in names]
    files += [root / name / "_annotations.coco.json" for name in names]
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        other = f" (nor for {', '.join(names[1:])})"
        looked = f"{files[0]} or {files[len(names)]}{other}"
        raise DataError(f"no COCO annotations at {looked}: name a COCO folder or a .json file")
    return file, places_of(file, split)


def places_of(file: Path, split: str) -> Places:
    """Return the folders where the images of an annotation file may lie, those that exist."""
    base, above = file.parent, file.parent.parent
    own = [file.stem.removeprefix("instances_")]
    parts = [part for part in SPLITS if set(part) & {*_words(file.stem), base.name.lower()}]
    words = list(dict.fromkeys([*own, *(name for part in parts for name in part)]))
    near = [base, *_below((base, above), words), base / "images", above / "images", above]
    guesses = [] if parts else _below((base, above), [*_same_part(split), *(n for part in SPLITS for n in part)])
    kept = [path for path in dict.fromkeys(near) if path.is_dir()]
    return Places(tuple(kept), tuple(p for p in dict.fromkeys(guesses) if p.is_dir() and p not in kept))


def image_folder(file: Path, names: Sequence[str], places: Places) -> Path:
    """Return the folder that holds the images of an annotation file.

    At least half of the names must exist in it. Of several such folders, the one counts for which the fewest leading
    folders of the names have to be left off; of equally good ones, the nearest.

    Raises:
        DataError: two guessed folders are equally good, so either may be the wrong one.
    """
    if len(places.near) == 1 and not places.guessed:
        return places.near[0]
    sample = [names[index * len(names) // SAMPLE] for index in range(SAMPLE)] if len(names) > SAMPLE else list(names)
    near = [(*_left_off(place, sample), place) for place in places.near]
    least = min((rank for rank, _, _ in near), default=NOWHERE)
    if least != NOWHERE:
        return next(place for rank, _, place in near if rank == least)
    guessed = [(*_left_off(place, sample), place) for place in places.guessed]
    least = min((rank for rank, _, _ in guessed), default=NOWHERE)
    if least == NOWHERE:
        return min([*near, *guessed], key=lambda found: found[1], default=(0, 0, file.parent))[2]
    found = [place for rank, _, place in guessed if rank == least]
    if not _same_files(sample, found):
        raise DataError(
            f"{file}: images of its names lie in {' and in '.join(map(shown, found))}, and its name does not say "
            f"which: move it beside its images, or name it after their folder (instances_{found[0].name}.json)"
        )
    return found[0]


def find_image(folder: Path, name: str) -> tuple[Path, bool] | None:
    """Return the file that a `file_name` means, and whether leading folders were left off; None if there is none."""
    plain = folder / name
    if os.path.isfile(plain):
        return plain, False
    for count, spelled in _spellings(name):
        if os.path.isfile(folder / spelled):
            return folder / spelled, count > 0
    return None


def _left_off(folder: Path, names: Sequence[str]) -> tuple[int, int]:
    """Return how many leading folders have to be left off to find half of the names, and how many are not there."""
    counts = []
    for name in names:
        if os.path.isfile(folder / name):
            counts.append(0)
            continue
        found = (count for count, spelled in _spellings(name) if os.path.isfile(folder / spelled))
        counts.append(next(found, NOWHERE))
    middle = sorted(counts)[(len(counts) - 1) // 2] if counts else NOWHERE
    return middle, counts.count(NOWHERE)


def _same_files(names: Sequence[str], folders: Sequence[Path]) -> bool:
    """Whether the folders are one and the same behind links."""
    for name in names:
        found = [find_image(folder, name) for folder in folders]
        if len({os.path.realpath(item[0]) for item in found if item is not None}) > 1:
            return False
    return True


def _spellings(name: str) -> Iterator[tuple[int, str]]:
    """Yield ways to write a name, and how many leading folders each leaves off; the fewest first."""
    texts = []
    for text in (name, unquote(name)):
        for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
            texts += [form, form.replace("\\", "/")]
    texts = list(dict.fromkeys(texts))
    for text in texts:
        yield 0, text
    tails = [found for text in texts for found in _tails(text)]
    yield from sorted(dict.fromkeys(tails), key=lambda found: found[0])


def _tails(text: str) -> Iterator[tuple[int, str]]:
    parts = [part for part in text.split("/") if part not in {"", "."}]
    for count in range(max(1, len(parts) - DEEPEST), len(parts)):
        if ".." not in parts[count:]:
            yield count, "/".join(parts[count:])
    if text.startswith("/") and parts and len(parts) <= DEEPEST and ".." not in parts:
        yield 1, "/".join(parts)


def _below(folders: Iterable[Path], words: Sequence[str]) -> list[Path]:
    return [folder / name for folder in folders for name in (*words, *(f"images/{word}" for word in words))]


def _same_part(split: str) -> list[str]:
    """Return the names of a part, its own first."""
    known = next((part for part in SPLITS if split in part), (f"{split}2017", f"{split}2014"))
    return list(dict.fromkeys([split, *known]))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:20\d\d)?", text.lower()))
