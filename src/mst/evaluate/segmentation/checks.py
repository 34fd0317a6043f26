"""Checks before a segmentation is trained: whether every pair can be read, and whether the masks teach anything.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from mst.data.background import read_in_threads
from mst.data.decoding import UnreadableImage
from mst.data.labelled import LOOKED_AT, same_content
from mst.data.sources import even_positions
from mst.data.unreadable import each_readable
from mst.errors import DataError
from mst.evaluate.common.features import FeatureSettings, progress_bar
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet, check_found
from mst.runtime.logging import warn
from mst.runtime.names import shown

MOST_SIZES = 20_000
"""Training images whose sizes are compared with those of validation images."""


def read_pairs(
    data: SegmentationData, pairs: SegmentationSet, workers: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield every image and checked mask, read ahead by threads.

    Raises:
        DataError: an image or a mask cannot be used.
    """

    def read(index: int) -> tuple[Tensor, Tensor]:
        try:
            return data.checked(pairs, index)
        except UnreadableImage as problem:
            raise DataError(f"an image of the segmentation cannot be read: {problem}") from problem

    return read_in_threads(read, range(len(pairs)), workers)


def usable_pairs(
    data: SegmentationData, pairs: SegmentationSet, settings: FeatureSettings
) -> tuple[SegmentationSet, list[str]]:
    """Read every image and mask once; return the pairs that can be used, and a line for each of the others.

    So a bad pair does not end a training that has run for hours. One warning counts the pairs that are left out.

    Raises:
        DataError: more than `max_unreadable_share` of the listed pairs, or all, are missing or cannot be used; or the
            masks hold nothing to learn from or to score.
    """
    title = "training" if pairs is data.train else "validation"
    found: set[int] = set()
    kept: list[int] = []
    bad: list[str] = []

    def read(index: int) -> Tensor:
        values: Tensor = torch.unique(data.checked(pairs, index)[1])
        return values

    def note(problem: DataError) -> None:
        bad.append(str(problem))

    each = each_readable(read, range(len(pairs)), note, workers=settings.workers, catch=DataError)
    with progress_bar(f"checking {title} masks", len(pairs), shown=settings.progress) as advance:
        for index, values in each:
            advance(1)
            if values is not None:
                kept.append(index)
                found |= set(values.tolist())
    left_out = judged(pairs, bad, settings, title)
    check_found(data, found, title)
    return (pairs.only(kept) if bad else pairs), left_out


def judged(pairs: SegmentationSet, bad: list[str], settings: FeatureSettings, title: str) -> list[str]:
    """Return a line for each pair that is missing or cannot be used, after one warning.

    Raises:
        DataError: they are all, or more than `max_unreadable_share`.
    """
    left_out, total = [*pairs.missing, *bad], len(pairs) + len(pairs.missing)
    if not left_out:
        return []
    share = settings.max_unreadable_share
    counted = f"{len(left_out)} of {total} {title} pairs cannot be used ({len(pairs.missing)} missing)"
    if len(left_out) > share * total or len(bad) == len(pairs):
        raise DataError(f"{counted}, at most {share:.0%} may be left out; the first: {left_out[0]}")
    rest = total - len(left_out)
    purpose = f"the score is of the other {rest}" if title == "validation" else f"the other {rest} are learnt from"
    warn(f"{counted} and are left out: {purpose} (--strict refuses them); the first: {left_out[0]}")
    return left_out


def compare_sets(data: SegmentationData) -> None:
    """Warn where validation images are training images: the same files, or files of the same content."""
    if not data.train.files or not data.val.files:
        return
    by_size: dict[int, list[Path]] = defaultdict(list)
    for position in even_positions(len(data.train), min(len(data.train), MOST_SIZES)).tolist():
        path = data.train.files[position][0]
        by_size[_size(path)].append(path)
    looked = [data.val.files[i][0] for i in even_positions(len(data.val), min(len(data.val), LOOKED_AT)).tolist()]
    same = [path for path in looked if any(same_content(path, other) for other in by_size.get(_size(path), []))]
    if same:
        warn(
            f"{len(same)} of the {len(looked)} validation images looked at are training images too (the same content),"
            f" such as {shown(same[0])}: what is measured on them says nothing about new images"
        )


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
