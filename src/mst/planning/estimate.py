"""What a run will take: time from a few real steps on random crops, memory from a step without arithmetic."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mst.data.reader import Places
from mst.engine.footprint import LiveBytes
from mst.errors import DataError, RunFailure
from mst.planning.setup import Setup, loader_workers
from mst.planning.simulation import random_views, simulate_step
from mst.planning.stream import make_loader
from mst.train.schedule import step_values
from mst.train.state import TrainState, new_state
from mst.train.step import train_step

FIRST_IMAGES, GROWTH, LONG_ENOUGH = 2, 4, 1.0
"""Images in the first probe step; how many times more in the next, until a step takes this many seconds."""
AUGMENTED_IMAGES = 8


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        step_seconds: one optimizer step, waiting for data excluded.
        images_per_second: what the slower of networks and loader gives.
        data_images_per_second: what the loader can prepare.
        total_seconds: the whole run.
        memory_bytes: largest memory without the loader: of the process on the CPU, of the device on CUDA.
    """

    step_seconds: float
    images_per_second: float
    data_images_per_second: float
    total_seconds: float
    memory_bytes: int


def estimate(setup: Setup) -> Estimate:
    """Run steps of growing size, up to one microbatch of the run, and draw the line through the last two to its batch.

    Raises:
        RunFailure: not even the probe fits into memory.
    """
    plan = setup.plan
    libraries = process_memory() if setup.device.type == "cpu" else 0
    memory = libraries + networks_memory(setup)
    step_seconds = _line(list(_points(setup))[-2:], plan.batch_size)
    prepared = data_rate(setup)
    rate = min(plan.batch_size / step_seconds, prepared)
    return Estimate(
        step_seconds=step_seconds,
        images_per_second=rate,
        data_images_per_second=prepared,
        total_seconds=plan.total_steps * plan.batch_size / rate,
        memory_bytes=memory,
    )


def _points(setup: Setup) -> Iterator[tuple[int, float]]:
    """Yield (images, seconds) of steps of growing size."""
    limit, size = setup.plan.batch_size_per_pass, min(FIRST_IMAGES, setup.plan.batch_size_per_pass)
    try:
        state = new_state(setup.build_pair(), setup.config, setup.plan)
        while True:
            seconds = _measure(setup, state, size)
            yield size, seconds
            if size == limit or seconds > LONG_ENOUGH:
                return
            size = min(GROWTH * size, limit)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailure(
            f"a microbatch of {size} images does not fit into memory: raise --train.accumulate, or use smaller crops"
        ) from error


def _measure(setup: Setup, state: TrainState, images: int) -> float:
    """Return the seconds of a step of `images`; the step before it warms up."""
    plan = setup.plan.model_copy(update={"batch_size": images})
    values = step_values(plan, setup.config, 0)
    seconds = 0.0
    for _ in range(2):
        views = random_views(setup, images)
        started = time.perf_counter()
        train_step(state, [views], values, setup.config, plan, dtype=setup.precision)
        seconds = time.perf_counter() - started
    return seconds


def networks_memory(setup: Setup, *, most: int | None = None) -> int:
    """Return the most bytes that networks, optimizer and one microbatch take, with what allocators and libraries add.

    Raises:
        TooManyBytes: more than `most`; None = whatever it is.
    """
    live = LiveBytes(setup.device.type, most=most)
    simulate_step(setup, live)
    return live.taken


def process_memory(*, largest: bool = False) -> int:
    """Return the bytes of memory that this process has now, or had at most."""
    if largest or not sys.platform.startswith("linux"):
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def _line(points: list[tuple[int, float]], at: int) -> float:
    """Continue the line through two points to `at`, or the line from the origin through one; it never falls."""
    (small, low), (large, high) = (points[0], points[-1]) if len(points) > 1 else ((0, 0.0), points[0])
    if high <= low:
        return high
    return low + (high - low) / (large - small) * (at - small)


def data_rate(setup: Setup) -> float:
    """Return the images per second that the loader can decode and augment; infinite where it cannot be told."""
    seconds, done = 0.0, 0
    with make_loader(setup, None, start_step=0) as loader:
        for position in range(min(AUGMENTED_IMAGES, len(setup.images))):
            started = time.perf_counter()
            try:
                loader.reader.read(Places(0, position, 1))
            except DataError:  # too many cannot be read: the run itself says so
                break
            if position:  # the first one also pays for start-up
                seconds, done = seconds + time.perf_counter() - started, done + 1
    return max(1, loader_workers(setup.config, setup.device)) * done / seconds if done else float("inf")
