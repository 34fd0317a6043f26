"""Features of a frozen backbone, computed in batches that threads read ahead; unreadable files are counted.

Letters: B images, n images of a set, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mst.data.sampler import WHOLE, Share
from mst.data.unreadable import LeftOut, each_readable, tell_left_out
from mst.evaluate.common.finite import check_finite
from mst.parallel.shares import own_share
from mst.parallel.world import World
from mst.runtime.device import Precision, select_precision, to_device
from mst.runtime.limits import check_numbers
from mst.runtime.logging import console

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

BATCHES_AHEAD = 2
"""Batches that are read while the backbone works."""

FeatureFunction = Callable[["Backbone", Tensor], Tensor]
"""(backbone, images [B,C,H,W]) -> features [B, ...]."""


T = TypeVar("T")


@dataclass(frozen=True)
class FeatureSettings:
    """How features are computed. Only `precision` changes numbers, and only their last digits.

    Attributes:
        forward_batch: images per forward pass.
        workers: threads that read and resize images.
        precision: compute type of the backbone; features are float32 either way.
        max_unreadable_share: stop when a larger share of a set cannot be read.
        progress: show a bar while working.
    """

    forward_batch: int = 128
    workers: int = 2
    precision: Precision = "auto"
    max_unreadable_share: float = 0.05
    progress: bool = True

    def __post_init__(self) -> None:
        check_numbers(self, "forward_batch", "workers", least=1)
        check_numbers(self, "max_unreadable_share", least=0, most=1)


@dataclass(frozen=True)
class Features:
    """The features of a set of images, on the CPU; unreadable images have no row.

    Attributes:
        features: [n, D], float32.
        labels: [n], int64.
        names: a path or name for each row.
        positions: of each row's image in the set.
        unreadable: "name: reason" for each image left out.
    """

    features: Tensor
    labels: Tensor
    names: tuple[str, ...]
    positions: tuple[int, ...]
    unreadable: tuple[str, ...] = ()


def cls_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the global feature [B, D]: CLS, or the pooled patch tokens."""
    features: Tensor = backbone(images)
    return features


def feature_map(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the final patch tokens as maps [B, D, h, w]."""
    tokens = backbone.tokens(images, importance=False)
    return tokens.patches.transpose(1, 2).reshape(images.shape[0], -1, *tokens.grid)


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[None]:
    """Inside: evaluation mode and no gradients. Afterwards every submodule has the mode that it had."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(backbone: nn.Module) -> torch.device:
    """Return the device of a module's first parameter, or the CPU."""
    parameter = next(backbone.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def used_precision(settings: FeatureSettings, network: nn.Module) -> str:
    """Return the compute type that the settings lead to on a network's device, as results name it: fp32 or bf16.

    What another program computes (`mst.export.reading`) says its own.
    """
    if isinstance(own := getattr(network, "computed_in", None), str):
        return own
    compute, _ = select_precision(settings.precision, device_of(network))
    return "bf16" if compute == torch.bfloat16 else "fp32"


def fingerprint(network: nn.Module) -> str:
    """Return a hash of the weights: a training that began with other weights is not resumed."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def forward_batch(backbone: Backbone, images: Tensor, function: FeatureFunction, precision: Precision) -> Tensor:
    """Return `function(backbone, images)` as float32, computed in the given precision on the backbone's device."""
    device = device_of(backbone)
    compute, _ = select_precision(precision, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute == torch.bfloat16):
        features = function(backbone, to_device(images, device))
    return features.float()


class Readable(Protocol):
    """Images that are read by position."""

    def __len__(self) -> int: ...

    def name(self, index: int, /) -> str:
        """Return what messages call an image."""

    def read(self, index: int, /) -> Tensor:
        """Return an image; may raise `mst.data.decoding.UnreadableImage`."""


class Labelled(Readable, Protocol):
    """Images that are read by position, with class numbers."""

    @property
    def labels(self) -> Tensor:
        """Class numbers [n], int64."""


class ImageBatch(NamedTuple):
    """The readable images of one batch: their positions in the set and their pixels [B, C, h, w]."""

    indices: list[int]
    images: Tensor
    unreadable: list[str]


def from_all(own: Iterable[T], world: World) -> Iterator[T]:
    """Yield what all processes make in turn, one item of each after the other; alone, its own items.

    So with the shares of `read_batches`, what one process alone would have made, in its order.
    """
    if world.size == 1:
        yield from own
        return
    remaining = iter(own)
    while True:
        found = [item for items in world.collect(list(islice(remaining, 1))) for item in items]
        yield from found
        if len(found) < world.size:
            return


def read_batches(
    images: Readable,
    transform: Callable[[Tensor], Tensor],
    settings: FeatureSettings,
    *,
    share: Share = WHOLE,
) -> Iterator[ImageBatch]:
    """Yield the set in order, `forward_batch` at a time; threads read two batches ahead.

    With a share, batches r, r + W, r + 2 W, ... of process r of W: the same batches as one process has.

    Raises:
        DataError: more than `max_unreadable_share` of the set cannot be read.
    """
    left_out, size = LeftOut(len(images), settings.max_unreadable_share), settings.forward_batch
    starts = range(0, len(images), size)[share.rank :: share.size]
    places = [place for start in starts for place in range(start, min(start + size, len(images)))]
    each = each_readable(
        lambda index: transform(images.read(index)),
        places,
        left_out.add,
        workers=settings.workers,
        ahead=BATCHES_AHEAD * size,
    )
    with closing(each):
        for start in starts:
            known = len(left_out.lines)
            pixels = {i: item for i, item in islice(each, min(size, len(images) - start)) if item is not None}
            tensors = torch.stack(list(pixels.values())) if pixels else torch.empty(0)
            yield ImageBatch(list(pixels), tensors, left_out.lines[known:])


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal until the block ends; yield the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = shown and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def extract_features(
    backbone: Backbone,
    images: Labelled,
    transform: Callable[[Tensor], Tensor],
    function: FeatureFunction = cls_features,
    settings: FeatureSettings | None = None,
    *,
    title: str = "features",
    place: Callable[[tuple[int, ...]], Tensor] = torch.empty,
    tell: bool = True,
) -> Features:
    """Return one float32 feature per readable image, in the order of `images`.

    Args:
        backbone: any module that `function` can use; its mode is restored afterwards.
        images: what to read.
        transform: uint8 image [C, H, W] -> float32 [C, h, w], the same size for every image.
        function: (backbone, images [B,C,h,w]) -> [B, D].
        settings: batch size, threads and compute type.
        title: words beside the progress bar.
        place: shape -> the float32 tensor to write the features into; it may be mapped from a file.
        tell: warn if images are left out.

    Raises:
        DataError: more than `max_unreadable_share` of the images, or all of them, cannot be read.
        RunFailure: a feature is not finite.
    """
    settings, world = settings or FeatureSettings(), World.current()
    rows = torch.empty(0)
    kept: list[int] = []
    unreadable: list[str] = []
    with frozen(backbone), progress_bar(title, len(images), shown=settings.progress and world.first) as advance:

        def computed(batch: ImageBatch) -> tuple[ImageBatch, Tensor]:
            features = torch.empty(0)
            if batch.indices:
                features = forward_batch(backbone, batch.images, function, settings.precision)
                check_finite(features, backbone, [images.name(index) for index in batch.indices], "features")
            return batch._replace(images=torch.empty(0)), features

        found = map(computed, read_batches(images, transform, settings, share=own_share()))
        for batch, features in from_all(found, world):
            if batch.indices:
                if not kept:
                    rows = place((len(images), *features.shape[1:]))
                rows[len(kept) : len(kept) + len(features)] = features
            kept += batch.indices
            unreadable += batch.unreadable
            advance(len(batch.indices) + len(batch.unreadable))
    LeftOut(len(images), settings.max_unreadable_share, unreadable).check()  # over all processes
    if tell:
        tell_left_out(unreadable, len(images), title)
    names = tuple(images.name(index) for index in kept)
    return Features(rows[: len(kept)], images.labels[kept], names, tuple(kept), tuple(unreadable))


def counts(train: Features, val: Features, classes: Sequence[str]) -> dict[str, Any]:
    """Return what a result says about its data: numbers of images and classes, and the images left out."""
    return {
        "train_images": len(train.labels),
        "val_images": len(val.labels),
        "classes": len(classes),
        "unreadable": [*train.unreadable, *val.unreadable],
    }
