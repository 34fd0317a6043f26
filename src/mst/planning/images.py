"""The images of a pre-training: found as its settings say, and what its order is called in the plan."""

from __future__ import annotations

from mst.config.schema import DataConfig, RunConfig, bytes_of
from mst.data.files.folders import cache_folder
from mst.data.order.epochs import LISTED, epoch_samples
from mst.data.order.room import check_room
from mst.data.sources import ImageSource, open_images
from mst.data.sources.shard_cache import ShardCache, usual_folder
from mst.paths import is_address, user_path


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
        shard_cache=shard_cache(data) if any(map(is_address, data.train)) else None,
    )
    check_room(images, data.order)
    return images


def labelled_cache(config: RunConfig) -> ShardCache | None:
    """Return where the shards of `--monitor.knn-data` are kept; None = they lie here."""
    return shard_cache(config.data) if is_address(config.monitor.knn_data or "") else None


def shard_cache(data: DataConfig) -> ShardCache:
    """Return where a run's fetched shards are kept.

    Raises:
        UsageError: it names none, and the user has no home.
    """
    option = "--data.shard-cache"
    folder = usual_folder(option) if data.shard_cache is None else user_path(data.shard_cache)
    return ShardCache(folder, bytes_of(data.shard_cache_size))


def order_name(images: ImageSource, data: DataConfig) -> str:
    """Return what decides which image comes when, for the plan: a resumed run must have the same."""
    computed = data.order == "global" and epoch_samples(images) > LISTED
    parts = images.weights()
    weights = [f"{weight:g}" for _, weight in parts] if any(weight != 1 for _, weight in parts) else []
    return " ".join(
        [f"{data.order}, computed" if computed else data.order, *(["weights"] if weights else []), *weights]
    )
