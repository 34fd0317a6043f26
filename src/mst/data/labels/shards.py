"""Labels in shards: members `cls`, `label` or `json` of tar files, the label column of parquet and Arrow files.

The split is told by the names of files or folders (train-00000.tar, val/0.tar), or is the data set's own (`hf:NAME`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mst.data.files.folders import cache_folder
from mst.data.files.kinds import EXTENSIONS, extension
from mst.data.files.passed import PassedOver
from mst.data.labels.record import NAMES, FoundLabels, LabelledImages, LabelOptions, Part, scored_part
from mst.data.sources.huggingface import hf_splits, is_hf, is_saved, parse, splits_of
from mst.data.sources.opening import OpenOptions, shard_images
from mst.data.sources.places import SHARDS
from mst.data.sources.protocol import ClassLabels, ImageSource
from mst.data.sources.shard import LocalShard
from mst.errors import DataError, UsageError
from mst.runtime.names import shown

NEEDED = "a member cls, label or json beside each image, or a column of this name"


def is_sharded(root: Path) -> bool:
    """Return whether a labelled set is `hf:NAME`, or a folder that holds shards and no image files."""
    if is_hf(os.fspath(root)):
        return True
    if not os.path.isdir(root):  # which says no where a name is too long; what is wrong is said by whoever opens it
        return False
    if is_saved(root):
        return True
    found = False
    for _, folders, names in os.walk(os.fsencode(root)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        kinds = {extension(name) for name in names}
        if kinds & EXTENSIONS:
            return False
        found = found or bool(kinds & SHARDS)
    return found


def labelled_by_shards(root: Path, options: LabelOptions, *, channels: int) -> FoundLabels:
    """Return the images and classes of shards.

    Raises:
        UsageError: no such data set, no training part, or two of the same meaning.
        DataError: images without classes, or classes to score that training does not have.
    """
    text, column = os.fspath(root), ""
    if is_hf(text):
        name = parse(text)
        if name.split:
            raise UsageError(f"{shown(text)} names one split: give hf:{shown(name.name)}, its splits are found")
        found, column = hf_splits(name.name), name.column
    else:
        found = splits_of(root.absolute())
    files = _by_part(found, text)
    part = scored_part(list(files), options.split, shown(text))
    parts: dict[Part, LabelledImages] = {}
    classes: tuple[str, ...] = ()
    images: list[ImageSource] = []
    for one in ("train", *([part] if part is not None else [])):
        source = shard_images([LocalShard(file) for file in files[one]], _options(channels), column)
        labels = source.labels()
        if labels is None:
            raise DataError(f"{shown(text)}: the images of {one} have no classes: {NEEDED} is expected")
        classes = classes or labels.classes
        parts[one] = _in_classes(source, _numbered(labels, classes, one, text))
        images.append(source)
    passed = PassedOver.of(entry for source in images for entry in source.passed.entries)
    titles = {one: f"{shown(text)} ({one})" for one in parts}
    return FoundLabels(shown(text), classes, parts, "shards" if part is not None else "", passed, titles)


def _options(channels: int) -> OpenOptions:
    return OpenOptions(channels, cache_folder())


def _by_part(found: Mapping[str, list[str]], text: str) -> dict[Part, list[str]]:
    """Return the files of each part; files whose names tell no part are for training where there are no others.

    Raises:
        UsageError: there is no training part, or two parts of the same meaning.
    """
    if {*found} == {""}:
        return {"train": found[""]}
    parts: dict[Part, list[str]] = {}
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
