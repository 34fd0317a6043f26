"""Whether a step fits into memory: from which share it does, may or does not, and one line that says what would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mst.engine.footprint import Counted
from mst.errors import UsageError
from mst.runtime import logging
from mst.runtime.device import free_memory

FAR = 2.5
"""Times the available memory from which it does not matter how much more is needed."""
COMFORT = 0.5
"""Share of the available memory up to which a bound decides that a step fits."""
TIGHT, REFUSED = 0.9, 1.25
"""Shares from which an estimate is a warning, and a refusal: it may be a fifth too high, and programs end."""


@dataclass(frozen=True)
class MicrobatchSize:
    """What goes through the networks at a time, and the options that make it smaller.

    Attributes:
        images: of a microbatch.
        batch_size: images of a step.
        microbatches: that make a step.
        device: where.
        smaller: how its images are made smaller, with the options' names.
        network: how the network is made smaller, likewise.
        section: what stands before `accumulate` and `batch-size` in their options' names.
    """

    images: int
    batch_size: int
    microbatches: int
    device: torch.device
    smaller: str
    network: str
    section: str = "--"

    @property
    def processes(self) -> int:
        """How many share a step's images."""
        return max(1, round(self.batch_size / (self.images * self.microbatches)))


@dataclass(frozen=True)
class Fit:
    """What the first step of a training takes, where it does not clearly fit.

    Attributes:
        needed: bytes of one microbatch with networks and optimizer, estimated; the least where it is far too much.
        available: bytes there are.
        images: of a microbatch that fit, about and at most; 0 = not even one does.
    """

    needed: int
    available: int
    images: int


def check_counted(asked: MicrobatchSize, count: Callable[[int, int], int], *, most: float) -> None:
    """Refuse a step of a training that cannot fit into memory; warn where it is tight.

    Args:
        asked: its microbatches.
        count: returns the memory of a microbatch from a number of images and the bytes of interest (`training_bytes`).
        most: bytes that the step takes at most; it is not counted where half of the available memory holds them.

    Raises:
        UsageError: it cannot.
    """
    available = free_memory(asked.device)
    if most <= COMFORT * available:
        return
    interest = of_interest(available)
    counted = Counted(lambda images: count(images, interest), largest=asked.images, most=interest)
    heed(counted_fit(asked, available, counted), asked)


def of_interest(available: int) -> int:
    """Return the bytes beyond which it does not matter how many more a step takes."""
    return round(max(FAR * available, 2**30))


def counted_fit(asked: MicrobatchSize, available: int, counted: Counted, *, least: int = 0) -> Fit | None:
    """Return what a microbatch takes, or None where it fits.

    Args:
        asked: the microbatch.
        available: bytes there are.
        counted: the memory of microbatches.
        least: bytes that it takes at least; it is not counted where they are far too many.
    """
    needed = least if least > FAR * available else counted.of(asked.images)
    if needed <= TIGHT * available:
        return None
    return Fit(needed, available, counted.most_images(TIGHT * available))


def heed(found: Fit | None, asked: MicrobatchSize) -> None:
    """Refuse a microbatch that cannot fit; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which setting to change to what.
    """
    if found is None:
        return
    said = statement(found, asked)
    if found.needed > REFUSED * found.available:
        raise UsageError(said)
    logging.warn(said)


def statement(found: Fit, asked: MicrobatchSize) -> str:
    """Return one line: what is needed and available, and what to change to what."""
    images, batch, section = asked.images, asked.batch_size, asked.section
    about = "at least" if found.needed > 2 * found.available else "about"
    verdict = "may not fit" if found.needed <= REFUSED * found.available else "does not fit"
    beginning = (
        f"a microbatch of {images} image{'s' * (images != 1)} needs {about} {_gib(found.needed)} of memory, "
        f"and {_gib(found.available)} are available on {asked.device}: it {verdict}"
    )
    if not found.images:
        return f"{beginning}, and not even one image does: use {asked.smaller} or {asked.network}"
    if found.images >= images:
        return f"{beginning}: raise {section}accumulate, or use {asked.smaller}"
    fitting = found.images * asked.processes
    parts = next(n for n in range(asked.microbatches, batch + 1) if batch % n == 0 and batch // n <= fitting)
    return (
        f"{beginning}; at most {found.images} do: {section}accumulate {parts} keeps the batch of {batch}, or use "
        f"{section}batch-size {fitting * asked.microbatches}, {asked.smaller} or {asked.network}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.{1 if size < 100 * 2**30 else 0}f} GiB"
