"""Whether the cache holds the shards of other machines that an order has in use at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mst.data.order.epochs import OrderKind
from mst.data.order.shards import LANES
from mst.data.sources.columns import ColumnImages
from mst.data.sources.mixed import MixedImages
from mst.data.sources.protocol import ImageSource
from mst.data.sources.remote import RemoteShard
from mst.data.sources.shard import Shard
from mst.data.sources.tar import TarImages
from mst.errors import UsageError

SPARE = 2
"""Shards beside those in use that the cache must hold, so that the next ones can be fetched."""


def check_room(images: ImageSource, kind: OrderKind) -> None:
    """Refuse a cache in which every file would be thrown out before it was used.

    Args:
        images: of a run.
        kind: of its order.

    Raises:
        UsageError: it is too small.
    """
    shards = [shard for shard in _shards(images) if isinstance(shard, RemoteShard)]
    if not shards:
        return
    cache = shards[0].cache
    sizes = sorted((shard.wanted.size for shard in shards), reverse=True)
    need = sum(sizes) if kind == "global" else sum(sizes[: LANES + SPARE])
    if need <= cache.room:
        return
    if kind == "global":
        what = f"--data.order global needs all {len(sizes)} shards at once"
        advice = "use --data.order shards, or give that much"
    else:
        what, advice = f"--data.order shards has {min(LANES + SPARE, len(sizes))} shards in use", "give that much"
    sizes_said = f"{need / 1e9:.3g} GB, and {cache.option} is {cache.room / 1e9:.3g} GB"
    raise UsageError(f"{what}, {sizes_said}: {advice}, or make smaller shards")


def check_whole(images: ImageSource, named: str) -> None:
    """Refuse a cache that does not hold all shards of images that are read in another order than theirs.

    Args:
        images: such as those of a class, then those of the next.
        named: what messages call them.

    Raises:
        UsageError: it is too small.
    """
    shards = [shard for shard in _shards(images) if isinstance(shard, RemoteShard)]
    need = sum(shard.wanted.size for shard in shards)
    if shards and need > (cache := shards[0].cache).room:
        raise UsageError(
            f"{named} has {len(shards)} shards of {need / 1e9:.3g} GB, which are read class by class, so all at once, "
            f"and {cache.option} is {cache.room / 1e9:.3g} GB: give that much"
        )


def fetch_soon(images: ImageSource) -> None:
    """Begin to fetch the shards of images that are all going to be read, if the cache holds them all."""
    shards = [shard for shard in _shards(images) if isinstance(shard, RemoteShard)]
    if shards and sum(shard.wanted.size for shard in shards) <= shards[0].cache.room:
        images.expect(np.arange(len(images), dtype=np.int64))


def _shards(images: ImageSource) -> Sequence[Shard]:
    """Return the files of images that lie in shards."""
    if isinstance(images, MixedImages):
        return [shard for part in images.parts for shard in _shards(part)]
    return images.shards if isinstance(images, TarImages | ColumnImages) else ()
