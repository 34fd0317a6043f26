"""An automatic split of labelled images: seeded, by class, the same on every machine, copies always on one side."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mst.data.labels.copies import copies_of
from mst.data.labels.record import FoundLabels, LabelledImages, Part
from mst.data.sources import ImageIndex
from mst.errors import DataError
from mst.runtime.identity import relative_names
from mst.runtime.names import shown
from mst.runtime.seeding import derive_seed
from mst.runtime.storage.tables import csv_lines

LETTERS = 8
"""Of a digest, in the name of the file."""
NAMED = 5


@dataclass(frozen=True)
class Split:
    """Which images are learned from, which are scored, and who said so.

    Attributes:
        part: that is scored.
        how: "folders", "column" of a table, or "automatic".
        share: of each class that an automatic split scores; None = it was given.
        seed: of an automatic split.
        copies: images of an automatic split with the content of another one, on the side of that one.
        train: the images to learn from, before any limit.
        scored: those to score.
        classes: their names.
        root: paths in the file are relative to it, where they lie below.
        labels: as of `FoundLabels`.
    """

    part: Part
    how: str
    share: float | None
    seed: int | None
    copies: int
    train: LabelledImages = field(repr=False)
    scored: LabelledImages = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    root: Path = field(repr=False)
    labels: str = ""

    @property
    def automatic(self) -> bool:
        """Whether it was made here."""
        return self.how == "automatic"

    @cached_property
    def table(self) -> bytes:
        """A table of path, label and split, which `--labels` takes where images are files: the split written down."""
        rows = [("path", "label", "split")]
        for part, images in (("train", self.train), (self.part, self.scored)):
            for position, label in enumerate(images.labels.tolist()):
                rows.append((_within(self.root, images.paths.name(position)), self.classes[label], part))
        return csv_lines(rows).encode("utf-8", "surrogateescape")

    @cached_property
    def file(self) -> str:
        """The name of that table's file: another split has another name."""
        return f"split-{hashlib.sha256(self.table).hexdigest()[:LETTERS]}.csv"

    @property
    def use(self) -> str:
        """What the file is good for: a table lists files, and images in shards are none."""
        return ": --labels takes it" if isinstance(self.train.paths, ImageIndex) else ""

    def row(self) -> dict[str, Any]:
        """Return what a row of results says of it."""
        said: dict[str, Any] = {"part": self.part, "how": self.how}
        if self.labels:
            said["labels"] = self.labels
        if self.automatic:
            said |= {"share": self.share, "seed": self.seed, "copies": self.copies, "file": self.file}
        return said

    def __str__(self) -> str:
        counts = f"{len(self.train.paths)} images to learn from, {len(self.scored.paths)} to score"
        copies = f", {self.copies} copies kept on one side" if self.copies else ""
        return f"{counts}{copies} (--val-share {self.share:g} --split-seed {self.seed})"


def _within(root: Path, name: str) -> str:
    return os.path.relpath(name, root) if Path(name).is_relative_to(root) else name


def split_off(found: FoundLabels, *, share: float, seed: int) -> tuple[LabelledImages, LabelledImages, int]:
    """Divide the training images of a set that has no split.

    Of each class the images are ordered by a hash of (seed, name below the folder that all share), and the first are
    scored. Images with the same bytes count as one, so they are on one side.

    Args:
        found: the set; of its parts "train" alone counts.
        share: of the images of each class that are scored, at least one of each.
        seed: of the hash.

    Returns:
        The images to learn from, those to score, and how many are copies of another one.

    Raises:
        DataError: a class with fewer than two different images.
    """
    images = found.parts["train"]
    first = copies_of(images.paths)  # [n]
    names = relative_names([os.fsencode(images.paths.name(position)) for position in range(len(images.paths))])
    labels = images.labels.numpy()
    sizes = np.bincount(first, minlength=len(first))  # of the group that begins there
    heads = np.flatnonzero(sizes)
    ranks = {int(head): derive_seed(seed, "split", names[head].hex()) for head in heads}
    scored = np.zeros(len(first), dtype=bool)
    single: list[str] = []
    for number, name in enumerate(found.classes):
        own = sorted(heads[labels[heads] == number].tolist(), key=lambda head: (ranks[head], names[head]))
        if len(own) < 2:
            count = int((labels == number).sum())
            single.append(f"{shown(name)} ({count} image{'s' * (count != 1)}{', all the same' * (count > 1)})")
            continue
        scored[_chosen(own, sizes, share)] = True
    if single:
        _refuse_single(found, single)
    scored = scored[first]
    parts = (images.only(np.flatnonzero(side).tolist()) for side in (~scored, scored))
    return *parts, len(first) - len(heads)  # type: ignore[return-value]


def _refuse_single(found: FoundLabels, single: Sequence[str]) -> None:
    many = " Is this the column of labels?" if len(single) > len(found.classes) / 2 and len(single) > NAMED else ""
    raise DataError(
        f"{found.origin}: {len(single)} of {len(found.classes)} classes cannot be split, two different images of each"
        f" are needed: {', '.join(single[:NAMED])}{', ...' * (len(single) > NAMED)}: add images, leave the"
        f" class{'es' * (len(single) > 1)} out, or give the split (train/ and val/, or a column split).{many}"
    )


def _chosen(heads: Sequence[int], sizes: npt.NDArray[np.int64], share: float) -> list[int]:
    """Return the groups to score: in order, as long as they fit into the share; at least one, and never all."""
    total = int(sizes[list(heads)].sum())
    most = max(1, round(share * total))
    chosen: list[int] = []
    for head in heads:
        if int(sizes[head]) <= most and len(chosen) < len(heads) - 1:
            chosen.append(head)
            most -= int(sizes[head])
    return chosen or [min(heads, key=lambda head: int(sizes[head]))]
