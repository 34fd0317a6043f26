"""From words to images: each source by its own kind, and all of them one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mst.data.files.kinds import ARRAY, BY_CONTENT, EXTENSIONS, ZIPPED_ARRAYS, extension
from mst.data.sources.arrays import array_images, is_array_of_images
from mst.data.sources.columns import column_images
from mst.data.sources.huggingface import hf_images, is_hf, is_saved, saved_images
from mst.data.sources.mixed import MixedImages
from mst.data.sources.places import (
    ARROW,
    PARQUET,
    TAR,
    Place,
    Source,
    local_files,
    shards_in,
    weighted_place,
    with_column,
)
from mst.data.sources.protocol import ImageSource
from mst.data.sources.remote import remote_shards
from mst.data.sources.search import NoImages, index_images, listed, looked_up
from mst.data.sources.shard import LocalShard, Shard
from mst.data.sources.shard_cache import ShardCache, usual_cache
from mst.data.sources.tar import tar_images
from mst.errors import DataError, UsageError
from mst.paths import is_address, user_path
from mst.runtime.names import shown


class OpenOptions(NamedTuple):
    """How sources are searched: as of `mst.data.sources.search.index_images`, and for other machines.

    Attributes:
        download: fetch Hugging Face data sets that are not here.
        shard_cache: of fetched shards; None = the usual one.
    """

    channels: int = 3
    cache: Path | None = None
    strict: bool = False
    by_content: bool = False
    tell: bool = True
    download: bool = False
    shard_cache: ShardCache | None = None

    @property
    def wanted(self) -> frozenset[bytes]:
        """Extensions of members that are images."""
        wanted = EXTENSIONS if self.channels in {1, 3} else EXTENSIONS | {ARRAY}
        return wanted | {BY_CONTENT} if self.by_content else wanted

    @property
    def fetched(self) -> ShardCache:
        """Where fetched shards are kept."""
        return self.shard_cache or usual_cache()


def open_images(
    paths: Source | Iterable[Source], *, limit: int | None = None, weighted: bool = False, **options: Any
) -> ImageSource:
    """Find the images that sources hold.

    Folders, lists and single images come first, in their order, then each other source: `.npy` and `.npz` files of
    several images, and shards (`.tar`, `.parquet`, `.arrow`), given as files, as patterns (`shards-{000..127}.tar`,
    `shards-*.tar`), as a folder that holds shards and no images, as Hugging Face data sets (`hf:NAME`) or as addresses.

    Args:
        paths: the sources.
        limit: keep only this many, drawn evenly.
        weighted: take weights (`path@2`: an epoch of a pre-training shows these images twice); else they are refused.
        options: as of `OpenOptions`.

    Raises:
        UsageError, DataError: as `index_images`; or an array or a shard that is damaged, or holds no images; a weight
            of zero.
    """
    asked = OpenOptions(**options)
    places = [weighted_place(source) for source in listed(paths)]
    if not weighted and (first := next((place for place in places if place.weighted), None)):
        raise UsageError(
            f"{shown(os.fsdecode(first.source))}@{first.weight:g}: weights are of pre-training (--data.train) only"
        )
    plain: list[Place] = []
    parts: list[tuple[ImageSource, float]] = []
    for place in places:
        found = _other_source(place.source, asked)
        if found is None and place.weight == 1:
            plain.append(place)
        else:
            parts.append((found or _files_or_shards([place.source], asked), place.weight))
    if plain:
        parts.insert(0, (_files_or_shards([place.source for place in plain], asked), 1.0))
    images = MixedImages.of([part for part, _ in parts], [weight for _, weight in parts])
    if asked.strict:
        images.passed.check()
    if asked.tell:
        images.passed.tell()
    return images.evenly(limit)


def _other_source(source: Source, asked: OpenOptions) -> ImageSource | None:
    """Return the images of a source that is neither a folder, an image nor a list; None = it is one of these."""
    text = os.fsdecode(source) if isinstance(source, str | bytes | os.PathLike) else ""
    if is_hf(text):
        return hf_images(text, download=asked.download)
    if is_address(text):
        place, column = with_column(text)
        shards: Sequence[Shard] = remote_shards(place, asked.fetched)
        return shard_images(shards, asked, column)
    kind = extension(os.fsencode(source))
    if kind in {ARRAY, ZIPPED_ARRAYS}:
        path, mode = looked_up(source)
        array = stat.S_ISREG(mode) and (kind == ZIPPED_ARRAYS or is_array_of_images(path, asked.channels))
        return array_images(path, asked.channels) if array else None
    if text and is_saved(user_path(text)):
        return saved_images(user_path(text).absolute())
    place, column = with_column(text)
    files = local_files(place)
    return None if files is None else shard_images([LocalShard(name) for name in files], asked, column)


def shard_images(shards: Sequence[Shard], asked: OpenOptions, column: str = "") -> ImageSource:
    """Return the images in shards of one kind.

    Args:
        shards: the files.
        asked: how they are searched.
        column: of parquet and Arrow files that holds the images; empty = find it.

    Raises:
        UsageError, DataError: a shard that cannot be read, or holds no images.
    """
    kinds = {extension(os.fsencode(shard.name.partition("?")[0])) for shard in shards}
    if kinds in ({PARQUET}, {ARROW}):
        return column_images(shards, column)
    if kinds != {TAR}:
        names = ", ".join(sorted(f".{kind.decode('utf-8', 'replace')}" for kind in kinds))
        raise UsageError(f"{shown(shards[0].name)}: shards of {names} together: give each kind by itself")
    return tar_images(shards, asked.wanted, asked.cache)


def _files_or_shards(sources: list[Source], asked: OpenOptions) -> ImageSource:
    """Return the images in folders, or else in the shards that they hold.

    Raises:
        UsageError, DataError: there are neither.
    """
    search: dict[str, Any] = {
        **{"channels": asked.channels, "cache": asked.cache},
        **{"by_content": asked.by_content, "tell": False},
    }
    try:
        return index_images(sources, **search)
    except NoImages as problem:
        held = [(source, _held(source)) for source in sources]
        if not any(shards for _, shards in held):
            raise
        nothing = problem
    parts: list[ImageSource] = []
    for source, shards in held:
        if shards:
            parts.append(shard_images([LocalShard(name) for name in shards], asked))
        else:
            parts.append(index_images(source, **search))
    if not parts:
        raise DataError(str(nothing))
    return MixedImages.of(parts)


def _held(source: Source) -> list[str]:
    """Return the shards in a folder."""
    path = Path(os.path.abspath(user_path(source)))
    return shards_in(path) if path.is_dir() else []
