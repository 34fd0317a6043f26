"""A labelled set: a source of images, their classes, and how they are split; whatever form the labels had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mst.data.files.passed import NOTHING, PassedOver
from mst.data.sources import ImageSource, even_positions
from mst.data.sources.mixed import MixedImages
from mst.errors import UsageError
from mst.paths import SourceText
from mst.runtime.limits import check_numbers

Part = Literal["train", "val", "test"]
NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders and words of a table, in lower case -> the part that they mean."""


@dataclass(frozen=True)
class LabelOptions:
    """Where labels come from, and how labelled images are split into those to learn from and those to score.

    Attributes:
        labels: a table (.csv, .tsv, or its address) with a path and a label a row; paths are relative to --data, or to
            the table. None = folders name the classes. `--data FILE.csv` means the same.
        path_column: name or number (from 1) of the table's column with paths; None = found.
        label_column: the same for labels.
        split_column: the same for train, val and test; None = found if it has a usual name.
        split: the part that is scored; None = val, or test where there is no val. `val` where there is only train and
            test splits train and leaves test alone.
        val_share: share of each class that is scored, where images have no split.
        split_seed: of that split: the same images and the same seed give the same split on every machine.
    """

    labels: SourceText | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    split: Literal["val", "test"] | None = None
    val_share: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "val_share", least=0.01, most=0.99)
        check_numbers(self, "split_seed", least=0)
        if self.split not in {None, "val", "test"}:
            raise UsageError(f"--split {self.split}: must be val or test")


class LabelledImages(NamedTuple):
    """Images and their classes.

    Attributes:
        paths: n images, class by class.
        labels: position of each one's class in the set's classes: int64 [n].
    """

    paths: ImageSource
    labels: Tensor

    def evenly(self, limit: int | None) -> LabelledImages:
        """Return at most `limit` of the images, drawn evenly, hence from all classes alike; None = all."""
        if limit is None or limit >= len(self.paths):
            return self
        return self.only(even_positions(len(self.paths), limit).tolist())

    def only(self, positions: Sequence[int]) -> LabelledImages:
        """Return the images at these positions, in this order."""
        chosen = torch.tensor(positions, dtype=torch.int64)
        return LabelledImages(self.paths.only(chosen.numpy()), self.labels[chosen])


@dataclass(frozen=True, eq=False)
class FoundLabels:
    """What a folder or a table says: images, labels and, if it has one, the split.

    Attributes:
        origin: what messages call it.
        classes: names of the classes.
        parts: images by part; only "train" = there is no split yet.
        given: how the split is given: by folders, by a column, by the names of shards or splits; "" = not at all.
        passed: what was found and not taken.
        titles: what messages call each part.
        labels: where the labels stand: `labels.csv, column kind`; "" = they are names of folders, or in shards.
    """

    origin: str
    classes: tuple[str, ...]
    parts: Mapping[Part, LabelledImages]
    given: Literal["folders", "column", "shards", ""]
    passed: PassedOver = NOTHING
    titles: Mapping[Part, str] | None = None
    labels: str = ""

    @property
    def images(self) -> ImageSource:
        """All images, of all parts that were read."""
        return MixedImages.of([part.paths for part in self.parts.values()])


def scored_part(there: Sequence[Part], asked: str | None, origin: str) -> Part | None:
    """Return the part to score; None = one has to be split off the training images.

    Raises:
        UsageError: test is asked for, and there are no images for testing.
    """
    if asked == "test" and "test" not in there:
        raise UsageError(f"--split test: {origin} has no test images: it has {', '.join(there)}; leave --split away")
    if asked == "test" or "val" in there:
        return "test" if asked == "test" else "val"
    return "test" if asked is None and "test" in there else None
