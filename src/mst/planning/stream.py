"""From the images of a run to its views: the loader of crops, and how its batches become views on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from mst.data.formats.card import CardDecoder
from mst.data.loader import BatchLoader, StackedBatch
from mst.data.sampler import WHOLE, Share
from mst.planning.setup import Setup, colour_on_device, enough_detail, loader_workers
from mst.runtime.device import staged, to_device
from mst.runtime.storage.rundir import RunDir
from mst.views.finish import finish_crops
from mst.views.multicrop import MultiCrop
from mst.views.normalise import as_views
from mst.views.parameters import COLOUR_NUMBERS
from mst.views.record import Crops, Views


class CropStream:
    """The crops of a run on its device, microbatch after microbatch: what is trained on, replayed and measured.

    They stay uint8 until a microbatch's turn comes (`views`, or a task by `mst.views.normalise.as_views`), so the
    float32 crops of one microbatch exist at a time. On a GPU their way to it is hidden behind the step before
    (`mst.runtime.device.staged`). Use it as a context manager, or call `close`.

    Attributes:
        loader: of the crops.
    """

    def __init__(self, setup: Setup, run: RunDir | None, *, first_step: int, share: Share = WHOLE) -> None:
        """Prepare; nothing is read before the first crops are asked for. Arguments as of `make_loader`."""
        self._setup = setup
        self.loader = make_loader(setup, run, start_step=first_step, share=share)
        following = staged(partial(next_crops, device=setup.device), setup.device)
        self._crops = iter(partial(following, self.loader), None)

    def __iter__(self) -> Iterator[Crops]:
        return self._crops

    def views(self) -> Iterator[Views]:
        """Yield the crops as the networks take them."""
        plan, device = self._setup.plan, self._setup.device
        return (as_views(crops, plan.mean, plan.std, device) for crops in self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the loader; what was read ahead is dropped."""
        self.loader.close()


def make_loader(setup: Setup, run: RunDir | None, *, start_step: int, share: Share = WHOLE) -> BatchLoader:
    """Return the loader of a share of the run's crops, from `start_step` on; without a run nothing is listed."""
    data = setup.config.data
    stacked = cut_crops if colour_on_device(setup.config, setup.device) else stacked_crops
    return BatchLoader(
        setup.images,
        partial(stacked, MultiCrop(setup.config.views, channels=data.channels)),
        batch_size=setup.plan.batch_size,
        seed=setup.config.runtime.seed,
        total_steps=setup.plan.total_steps,
        start_step=start_step,
        accumulate=setup.config.train.accumulate,
        share=share,
        channels=data.channels,
        workers=loader_workers(setup.config, setup.device),
        cache=data.cache,
        enough=enough_detail(setup.config),
        scale=setup.scale,
        max_unreadable_share=data.max_unreadable_share,
        unreadable_file=run.unreadable if run else None,
        card=CardDecoder(setup.device, data.channels) if setup.config.runtime.decode == "device" else None,
        order=data.order,
    )


def stacked_crops(
    multicrop: MultiCrop, images: Sequence[Tensor], generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Return the crops by sample, as the loader stacks them: [b, G, C, H, W] and [b, L, C, h, w]."""
    crops = multicrop.batch(images, generators)
    return crops.global_crops.transpose(0, 1), crops.local_crops.transpose(0, 1)


def cut_crops(
    multicrop: MultiCrop, images: Sequence[Tensor], generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return crops as `stacked_crops`, their colours unchanged, and what to do with these: [b, G+L, COLOUR_NUMBERS]."""
    crops = multicrop.cut(images, generators)
    numbers = torch.from_numpy(crops.parameters.as_numbers())  # [(G+L)*b, COLOUR_NUMBERS]
    numbers = numbers.view(-1, len(images), COLOUR_NUMBERS)  # [G+L, b, COLOUR_NUMBERS]
    return crops.global_crops.transpose(0, 1), crops.local_crops.transpose(0, 1), numbers.transpose(0, 1)


def next_crops(batches: Iterator[StackedBatch], *, device: torch.device) -> Crops | None:
    """Return the crops of the next batch; None at the end."""
    batch = next(batches, None)
    return None if batch is None else as_crops(batch, device=device)


def as_crops(batch: StackedBatch, *, device: torch.device) -> Crops:
    """Turn a stacked batch [B, V, C, H, W] into crops [V, B, C, H, W] on the device, where their colours may wait."""
    global_crops, local_crops, *numbers = (tensor.transpose(0, 1) for tensor in batch.tensors)
    if numbers:
        return finish_crops(Crops(global_crops, local_crops, batch.indices, batch.positions), numbers[0], device)
    return Crops(to_device(global_crops, device), to_device(local_crops, device), batch.indices, batch.positions)
