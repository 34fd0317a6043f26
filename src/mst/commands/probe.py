"""Time and memory of a run, from a few real steps on random crops of the right shape."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mst.commands.setup import Setup, loader_workers
from mst.data.decoding import UnreadableImage, decode_image
from mst.errors import RunFailure
from mst.runtime.seeding import generator
from mst.train.schedule import step_values
from mst.train.state import TrainState, new_state
from mst.train.step import train_step
from mst.views.multicrop import MultiCrop
from mst.views.record import Views

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
        memory_bytes: largest memory: of the process on the CPU, of the device on CUDA.
    """

    step_seconds: float
    images_per_second: float
    data_images_per_second: float
    total_seconds: float
    memory_bytes: int


def estimate(setup: Setup) -> Estimate:
    """Run steps of growing size, up to one pass of the run, and draw the line through the last two to its batch.

    Raises:
        RunFailure: not even the probe fits into memory.
    """
    plan = setup.plan
    points = list(_points(setup))[-2:]
    step_seconds = _line([(size, seconds) for size, seconds, _ in points], plan.batch_size)
    memory = _line([(size, memory) for size, _, memory in points], plan.batch_size_per_pass)
    data_rate = _data_rate(setup)
    rate = min(plan.batch_size / step_seconds, data_rate)
    return Estimate(
        step_seconds=step_seconds,
        images_per_second=rate,
        data_images_per_second=data_rate,
        total_seconds=plan.total_steps * plan.batch_size / rate,
        memory_bytes=round(memory),
    )


def _points(setup: Setup) -> Iterator[tuple[int, float, float]]:
    """Yield (images, seconds, peak bytes) of steps of growing size."""
    limit, size = setup.plan.batch_size_per_pass, min(FIRST_IMAGES, setup.plan.batch_size_per_pass)
    try:
        state = new_state(setup.build_pair(), setup.config, setup.plan)
        while True:
            seconds, memory = _measure(setup, state, size)
            yield size, seconds, memory
            if size == limit or seconds > LONG_ENOUGH:
                return
            size = min(GROWTH * size, limit)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailure(
            f"a pass of {size} images does not fit into memory: raise --train.accumulate, or use smaller crops"
        ) from error


def _measure(setup: Setup, state: TrainState, images: int) -> tuple[float, float]:
    """Return seconds and peak bytes of a step of `images`; the step before it warms up."""
    plan = setup.plan.model_copy(update={"batch_size": images})
    values = step_values(plan, setup.config, 0)
    seconds = 0.0
    for _ in range(2):
        views = random_views(setup, images)
        started = time.perf_counter()
        train_step(state, [views], values, setup.config, plan, dtype=setup.precision)
        seconds = time.perf_counter() - started
    return seconds, float(peak_memory(setup.device))


def random_views(setup: Setup, images: int) -> Views:
    """Return normalised crops of noise on the run's device."""
    draw = generator(setup.config.runtime.seed, "probe")
    views, channels = setup.config.views, setup.config.data.channels
    shapes = [
        (views.global_crops, images, channels, *setup.plan.global_size),
        (views.local_crops, images, channels, *setup.plan.local_size),
    ]
    crops = [torch.randn(shape, generator=draw).to(setup.device) for shape in shapes]
    return Views(crops[0], crops[1], torch.arange(images))


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _line(points: list[tuple[int, float]], at: int) -> float:
    """Continue the line through two points to `at`, or the line from the origin through one; it never falls."""
    (small, low), (large, high) = (points[0], points[-1]) if len(points) > 1 else ((0, 0.0), points[0])
    if high <= low:
        return high
    return low + (high - low) / (large - small) * (at - small)


def _data_rate(setup: Setup) -> float:
    """Return the images per second that the loader can decode and augment."""
    transform = MultiCrop(setup.config.views, channels=setup.config.data.channels)
    seconds, done = 0.0, 0
    for position, path in enumerate(setup.images.evenly(AUGMENTED_IMAGES)):
        started = time.perf_counter()
        try:
            transform(decode_image(path, channels=setup.config.data.channels), generator("probe", position))
        except UnreadableImage:
            continue
        if position:  # the first one also pays for start-up
            seconds, done = seconds + time.perf_counter() - started, done + 1
    return max(1, loader_workers(setup.config, setup.device)) * done / seconds if done else float("inf")
