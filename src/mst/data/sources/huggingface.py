"""Hugging Face data sets: `hf:NAME[:split][:column]`, from a folder or from the local cache.

A folder is one that `datasets` saved (`save_to_disk`), or one of parquet or Arrow files named after their splits. Any
other name is looked for in the caches of `datasets` and `huggingface_hub`; the network is used only where that was
asked for (`--data.download`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mst.data.sources.columns import ColumnImages, column_images
from mst.data.sources.places import shards_in
from mst.data.sources.shard import LocalShard
from mst.errors import DataError, MissingExtra, UsageError
from mst.paths import user_path
from mst.runtime.names import shown

PREFIX = "hf:"
DICT, INFO, STATE = "dataset_dict.json", "dataset_info.json", "state.json"
SPLIT = re.compile(
    r"(?:.*[-_.])?(train|training|validation|valid|val|dev|testing|test)"
    r"(?:\d{2,8}|[-_.]\d.*|[-_.]?(?:part|shard|chunk)[-_.]?\d.*)?",
    re.IGNORECASE,
)
"""Names of files and folders that tell their split: train-00000-of-00004.parquet, x-train.arrow, train/0.parquet,
val2017.tar, train_part0.tar."""
FIRST = ("train", "training")
"""The split that counts where none is named."""


class HfName(NamedTuple):
    """What `hf:NAME[:split][:column]` means."""

    name: str
    split: str
    column: str


def is_hf(text: str) -> bool:
    """Return whether a source is a Hugging Face data set by its name."""
    return text.startswith(PREFIX)


def parse(text: str) -> HfName:
    """Take a name apart.

    Raises:
        UsageError: it has no name, or too many parts.
    """
    name, *rest = text.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2:
        raise UsageError(f"{shown(text)}: hf:NAME[:split][:column] is expected, such as hf:cifar10:train:img")
    split, column = (*rest, "", "")[:2]
    return HfName(name, split, column)


def is_saved(folder: Path) -> bool:
    """Return whether `datasets` saved a data set into a folder; other files may have the names of its notes."""
    notes = {name: _noted(folder / name) for name in (DICT, STATE) if (folder / name).is_file()}
    if any(key in note for note, key in ((notes.get(DICT), "splits"), (notes.get(STATE), "_data_files")) if note):
        return True
    return None in notes.values() and any(folder.glob("*.arrow"))  # damaged beside what it is of


def _noted(path: Path) -> dict[str, Any] | None:
    """Return what a note holds; None where it cannot be read, empty where it is of something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else {}


def splits_of(folder: Path) -> dict[str, list[str]]:
    """Return the files of each split in a folder; those whose name tells no split are under "".

    Raises:
        DataError: a damaged data set.
    """
    try:
        if (folder / DICT).is_file():
            names = json.loads((folder / DICT).read_bytes())["splits"]
            return {str(name): _saved_files(folder / str(name)) for name in names}
        if (folder / STATE).is_file():
            return {"": _saved_files(folder)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{shown(str(folder))} is no data set that datasets saved: {error}") from error
    found: dict[str, list[str]] = {}
    for path in shards_in(folder):
        found.setdefault(split_of_name(os.path.relpath(path, folder)), []).append(path)
    return found


def _saved_files(folder: Path) -> list[str]:
    named = json.loads((folder / STATE).read_bytes())
    if named.get("_indices_data_files"):
        raise ValueError("its rows are chosen by indices: call flatten_indices() before save_to_disk()")
    files = [str(folder / Path(str(entry["filename"])).name) for entry in named["_data_files"]]
    if not files:
        raise ValueError("it names no files")
    return files


def split_of_name(name: str) -> str:
    """Return the split that a file's name, or that of a folder it lies in, tells; empty = none.

    Args:
        name: of the file below the data set's folder.
    """
    *folders, own = name.split("/")
    parts = [own.rpartition(".")[0], *reversed(folders)]
    return next((match[1].lower() for part in parts if (match := SPLIT.fullmatch(part))), "")


def hf_images(text: str, *, download: bool = False) -> ColumnImages:
    """Return the images of a data set.

    Args:
        text: `hf:NAME[:split][:column]`; without a split the training images, or all where there are no splits.
        download: whether the network may be used.

    Raises:
        UsageError: no such data set or split.
        DataError: a damaged one, or no images in it.
        MissingExtra: `datasets`, for a name that is no folder.
    """
    wanted = parse(text)
    found = hf_splits(wanted.name, download=download)
    files = found.get(wanted.split) if wanted.split else _usual(found)
    if files is None:
        names = ", ".join(sorted(filter(None, found))) or "it has none"
        asked = f"no split {shown(wanted.split)}" if wanted.split else "several splits and none called train"
        raise UsageError(f"{shown(text)}: {asked}: {names}")
    return column_images([LocalShard(name) for name in files], wanted.column)


def saved_images(folder: Path) -> ColumnImages:
    """Return the images of a folder that `datasets` saved: of its training split, if it has splits.

    Raises:
        UsageError, DataError: as `hf_images`.
    """
    files = _usual(splits_of(folder))
    if files is None:
        raise UsageError(f"{shown(str(folder))} has several splits and none called train: name one, hf:{folder}:SPLIT")
    return column_images([LocalShard(name) for name in files])


def _usual(found: dict[str, list[str]]) -> list[str] | None:
    if len(found) == 1:
        return next(iter(found.values()))
    return next((found[name] for name in FIRST if name in found), None)


def hf_splits(name: str, *, download: bool = False) -> dict[str, list[str]]:
    """Return the files of each split of a data set.

    Raises:
        UsageError: there is none of this name.
    """
    folder = Path(os.path.abspath(user_path(name)))
    if folder.is_dir():
        found = splits_of(folder)
        if not any(found.values()):
            raise UsageError(f"hf:{shown(name)}: the folder holds neither a saved data set nor parquet or Arrow files")
        return found
    return _loaded(name, download=download)


def _loaded(name: str, *, download: bool) -> dict[str, list[str]]:
    """Return the Arrow files of a data set in the cache, fetched before if that is allowed."""
    with _network(allowed=download):
        try:
            import datasets
        except ImportError:
            raise MissingExtra("datasets", "hf") from None
        quiet: Any = datasets
        quiet.disable_progress_bars()
        quiet.logging.set_verbosity_error()
        try:
            loaded = quiet.load_dataset(name)
        except Exception as error:  # whatever the library, the network or a damaged cache raise
            reason = " ".join(str(error).split())[:200]
            advice = (
                "correct the name"
                if download
                else "fetch it first (--data.download of a pre-training), or give a folder"
            )
            raise UsageError(
                f"hf:{shown(name)} is neither a folder nor a data set in the cache: {advice} ({reason})"
            ) from error
    return {str(split): [str(file["filename"]) for file in part.cache_files] for split, part in loaded.items()}


@contextmanager
def _network(*, allowed: bool) -> Iterator[None]:
    """Inside, Hugging Face's libraries use the network only if that is allowed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if allowed:
        yield
        return
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        import datasets.config as of_datasets
        import huggingface_hub.constants as of_hub
    except ImportError:
        raise MissingExtra("datasets", "hf") from None
    places: list[tuple[Any, str]] = [(of_datasets, "HF_HUB_OFFLINE"), (of_hub, "HF_HUB_OFFLINE")]
    kept = [(place, name, getattr(place, name, None)) for place, name in places]
    for place, name in places:
        setattr(place, name, True)
    try:
        yield
    finally:
        for place, name, value in kept:
            setattr(place, name, value)
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text
