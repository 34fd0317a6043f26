"""Batches of annotated examples for trainings: one order of an epoch, this process's share, read ahead by threads.

An epoch follows the other without a gap: a batch may hold the last examples of one and the first of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from mst.data.background import read_in_threads
from mst.data.decoding import UnreadableImage
from mst.data.order.epochs import EpochOrder
from mst.data.sampler import WHOLE, Share, microbatches
from mst.errors import DataError

Example = TypeVar("Example")

AHEAD = 2
"""Microbatches that are read while the networks work."""


class Place(NamedTuple):
    """Where an example comes in a training.

    Attributes:
        example: its position in the data set.
        place: examples that come before it, over all steps, epochs and processes.
    """

    example: int
    place: int


@dataclass(frozen=True)
class ExampleBatch(Generic[Example]):
    """The examples of a microbatch.

    Attributes:
        examples: what was read.
        indices: of the examples in the data set.
        positions: in the step's whole batch.
    """

    examples: list[Example]
    indices: list[int]
    positions: range


def example_batches(
    read: Callable[[Place], Example],
    order: EpochOrder,
    steps: range,
    batch_size: int,
    *,
    accumulate: int = 1,
    workers: int = 1,
    share: Share = WHOLE,
) -> Generator[ExampleBatch[Example], None, None]:
    """Yield the examples of each microbatch of some steps; arguments as of `mst.data.sampler.microbatches`, and:

    Args:
        read: called in a thread.
        order: of the examples in each epoch.
        workers: threads.

    Raises:
        DataError: an example cannot be read; nothing stands in for it.
    """

    def told(place: Place) -> tuple[int, Example]:
        try:
            return place.example, read(place)
        except UnreadableImage as problem:
            raise DataError(f"a training image cannot be read: {problem}") from problem

    def places() -> Iterator[Place]:
        for part in microbatches(steps, batch_size, accumulate, share):
            for position in part.positions:
                place = part.step * batch_size + position
                yield Place(order.image(place), place)

    most = max(map(len, share.microbatches(batch_size, accumulate)))
    with closing(read_in_threads(told, places(), workers, ahead=AHEAD * most)) as found:
        for part in microbatches(steps, batch_size, accumulate, share):
            indices, examples = zip(*islice(found, len(part.positions)), strict=True)
            yield ExampleBatch(list(examples), list(indices), part.positions)
