"""`mst pack`: images in balanced shards (tar or parquet), made smaller if asked for; resumable, verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText, SourceText, is_address, user_path
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words

if TYPE_CHECKING:
    from mst.data.packing.encoding import Packed

SHOWN = 10
LARGEST_SIDE = 16384


@dataclass(frozen=True)
class PackWords:
    """Write images into balanced shards: tar files as WebDataset lays them out, or parquet as Hugging Face does."""

    source: Annotated[tyro.conf.Positional[SourceText], tyro.conf.arg(metavar="SOURCE")] = ""
    """What --data.train takes: a folder, a list, shards, arrays. Class folders become labels; train, val and test
    become shards of these names."""
    out: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="OUT")] = ""
    """A folder for the shards. The same command again goes on where it was ended."""
    format: Literal["tar", "parquet"] = "tar"
    """Of the shards; parquet needs pyarrow (mst-pretrain[data])."""
    shards: int | None = None
    """Shards of each part; none = by --shard-size."""
    shard_size: int | None = None
    """Images of a shard, at most; none = 5000."""
    resize: int | None = None
    """Pixels of the shorter side: larger images become smaller, with their aspect, upright. None = as they are."""
    encode: Literal["jpeg", "png", "webp"] | None = None
    """Encode all images so; those that are so already and keep their size are copied. None = as they are."""
    quality: int = 90
    """Of JPEG and WebP, 1 to 100."""
    seed: int | None = None
    """Of a shuffled order; none = the order of the source."""
    by_content: bool = False
    """Open files with other extensions than images have, or none, and take those that begin as an image does."""
    workers: int = 2
    """Threads; they change nothing in the shards."""
    json: bool = False
    """One JSON object on stdout."""

    def __post_init__(self) -> None:
        limits = (
            ("--shards", self.shards, 1, 10**6),
            ("--shard-size", self.shard_size, 1, 10**7),
            ("--resize", self.resize, 8, LARGEST_SIDE),
            ("--quality", self.quality, 1, 100),
            ("--workers", self.workers, 1, 256),
            ("--seed", self.seed, 0, 2**63 - 1),
        )
        for name, value, least, most in limits:
            if value is not None and not least <= value <= most:
                raise UsageError(f"{name} {value}: must be a whole number of {least} to {most}")
        if self.shards is not None and self.shard_size is not None:
            raise UsageError("--shards and --shard-size say the same in two ways: give one of them")


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    words = parse_words(PackWords, argv, prog="mst pack")
    if words is None:
        return 0
    if not words.source or not words.out:
        raise UsageError("name the images and a folder for the shards: mst pack SOURCE OUT")
    from mst.data.packing.encoding import Encoding
    from mst.data.packing.pack import PackOptions, pack
    from mst.data.sources import open_images

    encoding = Encoding(words.resize, words.encode, words.quality)
    options = PackOptions(words.format, words.shards, words.shard_size, words.seed, encoding, words.workers)
    images = open_images(words.source, by_content=words.by_content)
    roots = [] if is_address(words.source) else [user_path(words.source)]
    row = pack(images, user_path(words.out), options, _shown_progress, roots)
    if words.json:
        emit_json({**row, "out": words.out})
    else:
        emit(*_tables(row, words))
    return 0


def _shown_progress(found: Iterator[Packed], total: int) -> Iterable[Packed]:
    """Draw a bar on stderr while the images are packed."""
    from mst.runtime.logging import console

    return track(found, "images", total=total, console=console, transient=True, disable=not console.is_terminal)


def _tables(row: dict[str, Any], words: PackWords) -> list[Table | Text]:
    """Return the tables for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("images", f"{row['packed']} of {row['images']} packed, {row['bytes'] / 1e6:.1f} MB")
    sizes = [shard["images"] for shard in row["shards"]]
    again = f", {len(sizes) - row['written']} of them before" if row["written"] < len(sizes) else ""
    table.add_row("shards", f"{len(sizes)} of {min(sizes)} to {max(sizes)} images{again}; all read back and compared")
    if row["changed"]:
        table.add_row("encoded anew", str(row["changed"]))
    if row["masks"]:
        table.add_row("left out", f"{row['masks']} in folders of annotations")
    if row["deep"]:
        table.add_row("left as they are", f"{row['deep']} of more than 8 bits or of other channels")
    if row["classes"]:
        table.add_row("classes", f"{len(row['classes'])}, numbered as in classes.txt")
    table.add_row("unreadable", f"{len(row['unreadable'])}, left out{', see unreadable.txt' * bool(row['unreadable'])}")
    tables: list[Table | Text] = [table]
    if row["unreadable"]:
        broken = Table("unreadable", "why", box=None, pad_edge=False)
        for entry in row["unreadable"][:SHOWN]:
            broken.add_row(Text(entry["path"]), Text(entry["reason"]))
        tables.append(broken)
    return tables
