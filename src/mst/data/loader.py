"""Batches of transformed samples, prefetched by a thread or by processes, the same ones whatever their number.

A step's batch is cut into chunks of consecutive samples. Chunks are read ahead by an executor (one thread of this
process, or worker processes) and handed out in order, so the number of workers changes the speed and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor

from mst.data.background import CLOSING, BackgroundThreads, read_ahead
from mst.data.formats.card import CardDecoder
from mst.data.formats.jpeg import Detail
from mst.data.order.epochs import OrderKind, epoch_samples
from mst.data.reader import Chunk, ImageCache, Places, SampleReader, Transform, quarter_of_memory
from mst.data.sampler import WHOLE, Microbatch, Share, divided, microbatches, position_of, steps_per_epoch
from mst.data.sources.protocol import ImageSource
from mst.data.transport import free_shared_memory, packed, unpacked
from mst.data.unreadable import UnreadableFiles
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import RunFailure, UsageError
from mst.runtime import logging
from mst.runtime.device import staged
from mst.runtime.signals import default_signals

LARGEST_CHUNK = 64
BATCHES_AHEAD = 2


class StackedBatch(NamedTuple):
    """The samples of one step, or of one microbatch of it.

    Attributes:
        tensors: the transform's results, each stacked at dimension 0: [b, ...].
        indices: the image that each sample shows, as a position in the source: int64 [b].
        step: the optimizer step it belongs to, from 0.
        positions: of the samples in the step's whole batch, which other processes and microbatches share: b of them.
    """

    tensors: tuple[Tensor, ...]
    indices: Tensor
    step: int
    positions: range


class Flags(NamedTuple):
    """How the command at hand names the options that messages advise to change."""

    workers: str
    max_unreadable_share: str


RUN_FLAGS = Flags("--runtime.workers", "--data.max-unreadable-share")
"""Those of a run's settings."""


class BatchLoader:
    """Iterates, once, over the batches of steps start_step..total_steps-1.

    The sample at position p of epoch e is image `EpochOrder(images, seed).of(e)[p]`, transformed with
    `generator(seed, e, p)`. An epoch has size // batch_size steps (its size counts weights); what is left over waits
    for another epoch. An unreadable file is replaced by the next one in the epoch's order, keeping the position's
    generator.

    Use it as a context manager, or call `close`: that ends the threads or processes.

    Attributes:
        wait_seconds: time the consumer has waited for batches so far.
        reader: of single samples.
        unreadable: counts of the files read and failed so far.
        steps_per_epoch: steps that make one epoch.
    """

    _told = False

    def __init__(
        self,
        images: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        accumulate: int = 1,
        share: Share = WHOLE,
        channels: int = 3,
        workers: int = 0,
        cache: bool = True,
        enough: Detail | None = None,
        scale: Scale = BY_TYPE,
        max_unreadable_share: float = 0.05,
        unreadable_file: Path | None = None,
        flags: Flags = RUN_FLAGS,
        card: CardDecoder | None = None,
        order: OrderKind = "global",
    ) -> None:
        """Prepare; nothing is read before the first batch is asked for.

        Args:
            images: those to read.
            transform: see `mst.data.reader.Transform`; with workers it is copied into each of them.
            batch_size: images per optimizer step, over all processes.
            seed, order: of order and views; which order, see `mst.data.order`.
            total_steps: the step before which the run ends.
            start_step: the first step to give, for a resumed run.
            accumulate: batches per step, nearly equal parts of this process's share.
            share: which part of each step's batch this process reads.
            workers: processes; 0 = one thread of this process.
            cache: keep small decoded images in a quarter of the memory (with workers = 0: processes share none).
            channels, enough, scale: see `mst.data.decoding.decode_image`.
            max_unreadable_share: more than this share of unreadable files ends the iteration with a `DataError`.
            unreadable_file: where unreadable files are listed; lines already there are kept and not repeated.
            flags: of the command, for messages.
            card: decodes JPEGs, and the transform then works on its device; without workers only.

        Raises:
            DataError: the batch is larger than the data set.
            UsageError: not an image for each part of a batch, or workers is negative.
        """
        if workers < 0:
            raise UsageError(f"{workers} loader workers: use 0 for a thread or a positive number of processes")
        self.steps_per_epoch, self.wait_seconds = steps_per_epoch(epoch_samples(images), batch_size), 0.0
        parts = share.microbatches(batch_size, accumulate)
        samples = self.steps_per_epoch * sum(map(len, parts))  # of an epoch, also where only a few steps are left
        self.unreadable = UnreadableFiles(
            images, limit=max_unreadable_share, flag=flags.max_unreadable_share, enough=samples, listing=unreadable_file
        )
        self._flags, self._batch_size, self._workers = flags, batch_size, workers
        self._parts = partial(microbatches, range(start_step, total_steps), batch_size, accumulate, share)
        self._ahead = max(BATCHES_AHEAD * max(len(_chunks(part, workers)) for part in parts), 2 * workers)
        memory = ImageCache(quarter_of_memory()) if cache and workers == 0 and card is None else None
        self.reader = SampleReader(images, transform, channels, seed, enough, memory, scale, card, order)
        self._executor: Executor | None = None
        self._batches = self._iterate()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StackedBatch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        except BrokenExecutor as error:
            raise RunFailure(
                f"a loader process died (out of memory?): use fewer {self._flags.workers}, or 0"
            ) from error
        finally:
            self.wait_seconds += time.perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration and its threads or processes; what was read ahead is dropped."""
        self._batches.close()
        executor, self._executor = self._executor, None
        if isinstance(executor, ProcessPoolExecutor):
            _end_workers(executor)
        elif executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def _iterate(self) -> Generator[StackedBatch, None, None]:
        """Yield the batches in order while chunks are read ahead."""
        self._executor = executor = self._start()
        read: Callable[[Places], Chunk] = (
            _read_in_worker if isinstance(executor, ProcessPoolExecutor) else self.reader.read
        )
        read = read if self.reader.card is None else staged(read, self.reader.card.device)
        chunks = read_ahead(read, self._places(), executor, ahead=self._ahead)
        for part in self._parts():
            found: list[Chunk] = []
            while sum(len(chunk.indices) for chunk in found) < len(part.positions):
                chunk, piped = unpacked(next(chunks))
                self._tell_of_pipes(piped)
                self.unreadable.note(chunk)
                found.append(chunk)
            yield _joined(found, part)

    def _places(self) -> Iterator[Places]:
        """Yield where the chunks of the run are."""
        for part in self._parts():
            epoch, first = position_of(part.step, self._batch_size, self.steps_per_epoch)
            for chunk in _chunks(part.positions, self._workers):
                yield Places(epoch, first + chunk.start, len(chunk))

    def _start(self) -> Executor:
        """Return the executor that reads ahead; a thread where the system gives no processes.

        Workers are started here, in the caller's thread: a later fork would copy whatever threads run by then.
        """
        if self._workers == 0:
            return BackgroundThreads("mst-loader")
        executor: ProcessPoolExecutor | None = None
        try:
            executor = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn"),
                initializer=_begin_worker,
                initargs=(self.reader, self._workers),
            )
            executor.submit(os.getpid).result()
        except (OSError, BrokenExecutor) as error:
            if executor is not None:
                _end_workers(executor)
            reason = error.strerror if isinstance(error, OSError) else "they end at once"
            logging.warn(f"no loader processes ({reason}): reading in one thread; {self._flags.workers} 0 does so too")
            return BackgroundThreads("mst-loader")
        return executor

    def _tell_of_pipes(self, piped: bool) -> None:
        """Say once that shared memory is too small."""
        if piped and not self._told:
            self._told = True
            megabytes = free_shared_memory() / 2**20
            logging.warn(
                f"/dev/shm has {megabytes:.1f} MB free, too few for the crops of {self._workers} loader processes: "
                "they come through pipes, which costs a little time (docker run --shm-size=1g, or --ipc=host)"
            )


def _end_workers(executor: ProcessPoolExecutor) -> None:
    """End the processes of an executor whatever they are doing; a read that hangs cannot keep them."""
    workers = list((getattr(executor, "_processes", None) or {}).values())
    manager = getattr(executor, "_executor_manager_thread", None)
    executor.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(CLOSING)
        if worker.is_alive():
            worker.kill()
    if manager is not None:  # the interpreter may end now, and would write to a pipe that this thread is closing
        manager.join(CLOSING)


def _chunks(positions: range, workers: int) -> list[range]:
    """Cut a microbatch into nearly equal chunks, at least one per worker where there are that many samples."""
    return divided(positions, min(len(positions), max(-(-len(positions) // LARGEST_CHUNK), workers)))


def _joined(chunks: list[Chunk], part: Microbatch) -> StackedBatch:
    """Put a microbatch together."""
    if len(chunks) == 1:
        return StackedBatch(chunks[0].tensors, chunks[0].indices, part.step, part.positions)
    tensors = tuple(torch.cat(parts) for parts in zip(*(chunk.tensors for chunk in chunks), strict=True))  # [B, ...]
    return StackedBatch(tensors, torch.cat([chunk.indices for chunk in chunks]), part.step, part.positions)


_worker: tuple[SampleReader, int] | None = None
"""In a worker process only: what it was started with, and how many workers there are."""


def _begin_worker(reader: SampleReader, workers: int) -> None:
    """Set a worker process up: one compute thread, no share in the run's signals, and an end when the parent ends."""
    global _worker  # noqa: PLW0603  (an executor gives its workers no other place)
    _worker = reader, workers
    torch.set_num_threads(1)
    os.setpgid(0, 0)  # signals sent to the run's process group (Ctrl-C) are the run's to handle
    default_signals()  # not the parent's handlers: the executor must be able to end it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave at once when the parent process is gone, killed included."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_in_worker(places: Places) -> Chunk:
    """Read one chunk in a worker process."""
    if _worker is None:
        raise RuntimeError("not a loader process")
    reader, workers = _worker
    return packed(reader.read(places), workers)
