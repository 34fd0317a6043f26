"""The images of a pre-training: found as its settings say, and what its order is called in the plan."""

from __future__ import annotations

from pathlib import Path

from mst.config.schema import DataConfig, bytes_of
from mst.data.files.folders import cache_folder
from mst.data.order.epochs import LISTED, epoch_samples
from mst.data.order.room import check_room
from mst.data.sources import ImageSource, open_images
from mst.paths import user_path


def training_images(data: DataConfig, *, limit: int | None = None, tell: bool = True) -> ImageSource:
    """Return the images that a run learns from.

    Args:
        data: where they are.
        limit: as of `open_images`; the run's own is `data.limit`.
        tell: say on stderr what was passed over.

    Raises:
        UsageError, DataError: as `open_images`; or a cache too small for the order.
    """
    images = open_images(
        data.train,
        limit=limit,
        weighted=True,
        channels=data.channels,
        cache=cache_folder() if data.index_cache else None,
        strict=data.strict,
        by_content=data.by_content,
        tell=tell,
        download=data.download,
        shard_cache=shard_folder(data),
        shard_room=bytes_of(data.shard_cache_size),
    )
    check_room(images, data.order)
    return images


def shard_folder(data: DataConfig) -> Path | None:
    """Return the folder of fetched shards; None = the usual one."""
    return None if data.shard_cache is None else user_path(data.shard_cache)


def order_name(images: ImageSource, data: DataConfig) -> str:
    """Return what decides which image comes when, for the plan: a resumed run must have the same."""
    computed = data.order == "global" and epoch_samples(images) > LISTED
    parts = images.weights()
    weights = [f"{weight:g}" for _, weight in parts] if any(weight != 1 for _, weight in parts) else []
    return " ".join(
        [f"{data.order}, computed" if computed else data.order, *(["weights"] if weights else []), *weights]
    )
