"""A labelled set: source, labels and split, from class folders, a table or shards; one function for all that use it.

`find_labels` is the seam: it turns what a user names into `FoundLabels` (a source, labels, perhaps a split); another
form of labels is one more case there. Splitting, limits, warnings and what is written down follow from that.
"""

from __future__ import annotations

from pathlib import Path

from mst.data.files.passed import PassedOver
from mst.data.labels.folders import labelled_by_folders
from mst.data.labels.listed import labelled_by_table
from mst.data.labels.overlap import LOOKED_AT, MOST_COMPARED, tell_overlap
from mst.data.labels.record import FoundLabels, LabelledImages, LabelOptions
from mst.data.labels.shards import is_sharded, labelled_by_shards
from mst.data.labels.splitting import Split, split_off
from mst.data.labels.table import is_table
from mst.data.sources.shard_cache import ShardCache
from mst.errors import UsageError
from mst.paths import is_address, user_path, user_place
from mst.runtime import logging
from mst.runtime.names import shown

__all__ = ["LOOKED_AT", "LabelOptions", "LabelledFolder", "LabelledImages", "Split", "find_labels", "same_content"]

DEFAULTS = LabelOptions()


class LabelledFolder:
    """A training and a validation set with the same classes.

    Attributes:
        root: the folder, table or address.
        classes: names of the training classes, sorted.
        train: the training images.
        val: the images to score, from val or test; may lack some classes.
        split: who divided them, and how.
        passed: what was found beside the classes, and in them, and not taken.

    Args:
        root: a folder of train/<class>/ and val/<class>/ (or their other names), of <class>/, or of the images of a
            table; a table; shards, as a folder, a pattern, `hf:NAME` or an address.
        labels: the table, its columns, the part to score, and the split where there is none.
        channels: of the images.
        strict: accept nothing that cannot be used: no dead links, no images beside the class folders, none missing.
        tell: say on stderr what was passed over, how images were split, and whether some are on both sides.
        cache: of shards of other machines; None = the usual one.

    Raises:
        UsageError: no such folder or table, or a part or column that is asked for is missing.
        DataError: no class folders, a class without images, validation classes that training does not have, a class
            that cannot be split, a table that contradicts itself, or (with `strict`) something that cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        labels: LabelOptions = DEFAULTS,
        channels: int = 3,
        strict: bool = False,
        tell: bool = True,
        cache: ShardCache | None = None,
    ) -> None:
        self.root = user_place(root)
        found = find_labels(self.root, labels, channels=channels, cache=cache)
        self.passed: PassedOver = found.passed
        if strict:
            self.passed.check()
        self.classes: tuple[str, ...] = found.classes
        self.split = _divided(found, labels, self.root)
        self.train, self.val = self.split.train, self.split.scored
        if tell:
            self.tell()

    def limited(self, train: int | None, val: int | None) -> tuple[LabelledImages, LabelledImages]:
        """Return at most so many images to learn from and to score, and warn of classes that are left without any."""
        some = self.train.evenly(train), self.val.evenly(val)
        for limit, whole, images, what in (
            (f"{train} training images", self.train, some[0], "image to learn from, so theirs cannot be recognised"),
            (f"{val} validation images", self.val, some[1], "image to score"),
        ):
            lost = sorted({*whole.labels.tolist()} - {*images.labels.tolist()})
            if lost:
                names = ", ".join(shown(self.classes[number]) for number in lost[:5])
                logging.warn(
                    f"the limit of {limit} leaves {len(lost)} of {len(self.classes)} classes without any {what}: "
                    f"{names}{', ...' * (len(lost) > 5)}"
                )
        return some

    def tell(self) -> None:
        """Say on stderr what was passed over, how images were split, and whether some are on both sides."""
        self.passed.tell()
        absent = sorted(set(range(len(self.classes))) - set(self.split.scored.labels.tolist()))
        if self.split.automatic:
            some = ", ".join(map(shown, self.classes[:5])) + ", ..." * (len(self.classes) > 5)
            classes = f"{len(self.classes)} classes by {self.split.labels or 'name of folder'}: {some}"
            logging.info(f"{shown(self.root)} has no validation images: split by class: {self.split}; {classes}")
            return
        if absent:
            names = ", ".join(shown(self.classes[number]) for number in absent[:5])
            logging.warn(
                f"{shown(self.root)}: {len(absent)} of {len(self.classes)} classes have no image to score"
                f" ({self.split.part}): {names}{', ...' * (len(absent) > 5)}"
            )
        tell_overlap(self.split.train.paths, self.split.scored.paths)


def find_labels(
    place: str | Path, labels: LabelOptions, *, channels: int, cache: ShardCache | None = None
) -> FoundLabels:
    """Return the labelled images that a folder, a table or shards name, with their split if they have one.

    Raises:
        UsageError, DataError: as `LabelledFolder`.
    """
    text = user_place(place)
    sharded = is_sharded(text)
    if sharded and labels.labels is not None:
        raise UsageError(
            f"--labels {labels.labels}: {shown(text)} is made of shards, whose labels are in them: leave it away"
        )
    root = user_path(text)
    if not sharded and is_table(root):
        if labels.labels is not None:
            raise UsageError(
                f"--labels {labels.labels} and --data {shown(root)} are two tables: give a folder as --data"
            )
        return labelled_by_table(text, None, labels)
    if labels.labels is not None:
        return labelled_by_table(user_place(labels.labels), root, labels)
    for name in ("path_column", "label_column", "split_column"):
        if getattr(labels, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to a table: give it with --labels FILE.csv")
    if sharded:
        return labelled_by_shards(text, labels, channels=channels, cache=cache)
    return labelled_by_folders(root, labels, channels=channels)


def _divided(found: FoundLabels, labels: LabelOptions, place: str) -> Split:
    scored = next((part for part in found.parts if part != "train"), None)
    root = Path(place if is_address(place) or Path(place).is_dir() else Path(place).parent).absolute()
    train = found.parts["train"]
    if scored is not None:
        return Split(scored, found.given, None, None, 0, train, found.parts[scored], found.classes, root, found.labels)
    if labels.split == "test":
        raise UsageError(f"--split test: {found.origin} has no images for testing: leave --split away")
    train, val, copies = split_off(found, share=labels.val_share, seed=labels.split_seed)
    return Split(
        "val", "automatic", labels.val_share, labels.split_seed, copies, train, val, found.classes, root, found.labels
    )


def same_content(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, or have the same size and beginning."""
    try:
        first, second = one.stat(), other.stat()
        if first.st_dev == second.st_dev and first.st_ino == second.st_ino:
            return True
        if first.st_size != second.st_size or not first.st_size:
            return False
        with one.open("rb") as left, other.open("rb") as right:
            return left.read(MOST_COMPARED) == right.read(MOST_COMPARED)
    except OSError:
        return False
