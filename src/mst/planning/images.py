"""The images of a pre-training: found as its settings say, and what its order is called in the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from mst.config.schema import DataConfig, RunConfig, bytes_of
from mst.data.files.folders import cache_folder
from mst.data.labelled import LabelledFolder, LabelOptions
from mst.data.labels.copies import positions_of
from mst.data.order.epochs import LISTED, epoch_samples
from mst.data.order.room import check_room
from mst.data.sources import ImageSource, open_images
from mst.data.sources.shard_cache import ShardCache, usual_folder
from mst.errors import DataError, UsageError
from mst.paths import is_address, user_path
from mst.planning.held_out import set_apart
from mst.runtime import logging


@dataclass(frozen=True)
class FoundImages:
    """What a run learns from, and what it is measured on.

    Attributes:
        learned: the training images.
        apart: images of --data.train that are not learned from, for scores without labels; None = none.
        labelled: the labelled images for k-NN while training; None = none.
    """

    learned: ImageSource
    apart: ImageSource | None
    labelled: LabelledFolder | None


def found_images(config: RunConfig, *, tell: bool = True) -> FoundImages:
    """Return a run's images, those that it does not learn from set apart.

    Args:
        config: of the run.
        tell: say on stderr what was passed over, how images were split, and how many were left out.

    Raises:
        UsageError, DataError: as `training_images` and `LabelledFolder`; or no image is left to learn from.
    """
    data, monitor = config.data, config.monitor
    images = training_images(data, limit=data.limit, tell=tell)
    labelled = None
    if monitor.knn_data is not None:
        try:
            labelled = LabelledFolder(
                monitor.knn_data,
                labels=knn_labels(config),
                channels=data.channels,
                strict=data.strict,
                tell=tell,
                cache=labelled_cache(config),
            )
        except (UsageError, DataError) as error:  # the options of an evaluation have other names here
            if type(error) not in {UsageError, DataError}:  # others say it in their own way
                raise
            raise type(error)(_in_monitor_words(str(error))) from error
        if monitor.knn_exclude:
            images = _without(images, labelled.split.scored.paths, tell=tell)
    learned, apart = set_apart(images, data.held_out)
    return FoundImages(learned, apart, labelled)


def _in_monitor_words(text: str) -> str:
    """Return a message on labels with the options that a pre-training has; columns without one are to be renamed."""
    for column, usual in (("path", "path"), ("split", "split")):
        text = text.replace(f"name it with --{column}-column", f"call it {usual} in the table")
    return re.sub(r"(?<![\w.-])--(label-column|labels|data)(?![\w.-])", r"--monitor.knn-\1", text)


def _without(images: ImageSource, scored: ImageSource, *, tell: bool) -> ImageSource:
    """Leave images that are scored out of those to learn from."""
    out = positions_of(images, scored)
    if not len(out):
        return images
    if len(out) == len(images):
        raise DataError(
            f"--data.train: all {len(images):,} images are validation images of --monitor.knn-data, which "
            "--monitor.knn-exclude leaves out: name other images, or a smaller --monitor.knn-val-share"
        )
    if tell:
        logging.info(
            f"{len(out):,} of {len(images):,} images of --data.train are not learned from: they are validation images"
            " of --monitor.knn-data (--monitor.knn-exclude false learns from them)"
        )
    return images.only(np.delete(np.arange(len(images), dtype=np.int64), out))


def knn_labels(config: RunConfig) -> LabelOptions:
    """Return where the labels for k-NN while training come from, and how images without a split are split."""
    monitor = config.monitor
    return LabelOptions(
        monitor.knn_labels,
        label_column=monitor.knn_label_column,
        val_share=monitor.knn_val_share,
        split_seed=monitor.knn_split_seed,
    )


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
