"""Labels in shards: members `cls`, `label` or `json` of tar files, the label column of parquet and Arrow files.

The split is told by the names of files or folders (train-00000.tar, val/0.tar), or is the data set's own (`hf:NAME`).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mst.data.files.folders import cache_folder
from mst.data.files.kinds import EXTENSIONS, extension
from mst.data.files.passed import PassedOver
from mst.data.labels.record import NAMES, FoundLabels, LabelledImages, LabelOptions, Part, scored_part
from mst.data.order.room import check_whole, fetch_soon
from mst.data.sources.huggingface import hf_splits, is_hf, is_saved, parse, split_of_name, splits_of
from mst.data.sources.opening import OpenOptions, shard_images
from mst.data.sources.places import SHARDS, local_files, with_column
from mst.data.sources.protocol import ClassLabels, ImageSource
from mst.data.sources.remote import remote_shards
from mst.data.sources.shard import LocalShard, Shard
from mst.data.sources.shard_cache import ShardCache
from mst.errors import DataError, UsageError
from mst.paths import is_address
from mst.runtime.names import shown

PATTERN = re.compile(r"[*?\[{]")
NEEDED = "a member cls, label or json beside each image, or a column of this name"


def is_sharded(place: str) -> bool:
    """Return whether a labelled set is `hf:NAME`, an address, a file, pattern or folder of shards (and no images)."""
    if is_address(place):
        return True
    if not os.path.isdir(place):  # which says no where a name is too long; what is wrong is said by whoever opens it
        return extension(os.fsencode(with_column(place)[0])) in SHARDS
    if is_saved(Path(place)):
        return True
    found = False
    for _, folders, names in os.walk(os.fsencode(place)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        kinds = {extension(name) for name in names}
        if kinds & EXTENSIONS:
            return False
        found = found or bool(kinds & SHARDS)
    return found


def labelled_by_shards(
    text: str, options: LabelOptions, *, channels: int, cache: ShardCache | None = None
) -> FoundLabels:
    """Return the images and classes of shards.

    Args:
        text: `hf:NAME`, an address, a file or pattern of shards, or a folder of them.
        options: the part to score.
        channels: of the images.
        cache: of shards of other machines; None = the usual one.

    Raises:
        UsageError: no such data set, no training part, two of the same meaning, or a cache that is too small.
        DataError: images without classes, or classes to score that training does not have.
        Unreachable: a shard of another machine cannot be fetched.
    """
    asked = OpenOptions(channels, cache_folder(), shard_cache=cache)
    found, column = _splits(text, asked)
    files = _by_part(found, text)
    part = scored_part(list(files), options.split, shown(text))
    parts: dict[Part, LabelledImages] = {}
    classes: tuple[str, ...] = ()
    images: list[ImageSource] = []
    for one in ("train", *([part] if part is not None else [])):
        source = shard_images(files[one], asked, column)
        check_whole(source, f"{shown(text)} ({one})")
        fetch_soon(source)  # labels are in all of its shards
        labels = source.labels()
        if labels is None:
            raise DataError(f"{shown(text)}: the images of {one} have no classes: {NEEDED} is expected")
        classes = classes or labels.classes
        parts[one] = _in_classes(source, _numbered(labels, classes, one, text))
        images.append(source)
    passed = PassedOver.of(entry for source in images for entry in source.passed.entries)
    titles = {one: f"{shown(text)} ({one})" for one in parts}
    return FoundLabels(shown(text), classes, parts, "shards" if part is not None else "", passed, titles)


def _splits(text: str, asked: OpenOptions) -> tuple[dict[str, list[Shard]], str]:
    """Return the shards of each split that their names tell ("" = none), and the column of images ("" = found).

    Raises:
        UsageError: no such shards, or one split of a data set alone.
    """
    column = ""
    if is_hf(text):
        name = parse(text)
        if name.split:
            raise UsageError(f"{shown(text)} names one split: give hf:{shown(name.name)}, its splits are found")
        found, column = hf_splits(name.name), name.column
    elif os.path.isdir(text):
        found = splits_of(Path(text).absolute())
    else:
        place, column = with_column(text)
        shards: Sequence[Shard] = (
            remote_shards(place, asked.fetched)
            if is_address(place)
            else [LocalShard(file) for file in local_files(place) or ()]
        )
        named: dict[str, list[Shard]] = {}
        for shard in shards:
            named.setdefault(split_of_name(_below(shard.name, place)), []).append(shard)
        return named, column
    return {split: [LocalShard(file) for file in names] for split, names in found.items()}, column


def _below(name: str, asked: str) -> str:
    """Return a shard's name below what was asked for: the folder, or what stands before the first pattern."""
    if is_address(asked):
        asked, name = asked.partition("?")[0], name.partition("?")[0]
    start = PATTERN.split(asked, maxsplit=1)[0]
    folder = (
        start.rstrip("/")
        if start == asked and extension(os.fsencode(asked)) not in SHARDS
        else posixpath.dirname(start)
    )
    return name.removeprefix((folder if is_address(asked) else os.path.abspath(folder)) + "/")


def _by_part(found: Mapping[str, list[Shard]], text: str) -> dict[Part, list[Shard]]:
    """Return the files of each part; files whose names tell no part are for training where there are no others.

    Raises:
        UsageError: there is no training part, or two parts of the same meaning.
    """
    if {*found} == {""}:
        return {"train": found[""]}
    parts: dict[Part, list[Shard]] = {}
    for name, files in found.items():
        part = NAMES.get(name.lower())
        if part is None:
            continue
        if part in parts:
            raise UsageError(f"{shown(text)} has two parts for {part}: keep one of them")
        parts[part] = files
    if "train" not in parts:
        names = ", ".join(sorted(map(shown, filter(None, found)))) or "none"
        raise UsageError(f"{shown(text)} has no split train: its splits are {names}")
    return parts


def _numbered(labels: ClassLabels, classes: tuple[str, ...], part: str, text: str) -> ClassLabels:
    """Return classes under the numbers of the training's.

    Raises:
        DataError: training does not have one.
    """
    used = {labels.classes[number] for number in np.unique(labels.numbers).tolist()}
    unknown = sorted(used - {*classes})
    if unknown:
        named = ", ".join(map(shown, unknown[:5])) + ", ..." * (len(unknown) > 5)
        raise DataError(f"{shown(text)}: {part} has {len(unknown)} classes that train lacks: {named}")
    return labels.numbered_as(classes)


def _in_classes(source: ImageSource, labels: ClassLabels) -> LabelledImages:
    """Return images class by class, their order inside a class kept."""
    order = np.argsort(labels.numbers, kind="stable")
    return LabelledImages(source.only(order), torch.from_numpy(labels.numbers[order]))
