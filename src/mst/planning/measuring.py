"""Speed of a training step alone, of the loader alone, and of both together, each measured for a given time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from mst.config.derive import check_consistent, derive
from mst.config.schema import RunConfig
from mst.data.loader import BatchLoader
from mst.data.sources import ImageIndex, even_positions
from mst.errors import DataError, RunFailure
from mst.planning.estimate import data_rate, process_memory
from mst.planning.fitting import check_fits
from mst.planning.setup import Setup, checked_spec, prepare_process
from mst.planning.simulation import random_views, step_operations
from mst.planning.stream import CropStream, make_loader
from mst.runtime.device import select_device, select_precision, set_float32_products
from mst.runtime.seeding import generator
from mst.runtime.storage.rundir import RunDir
from mst.train.schedule import step_values
from mst.train.state import TrainState
from mst.train.step import train_step
from mst.views.record import Views

WITHOUT_IMAGES = 100
"""Batches of an epoch where no data set is given."""
FEWEST_STEPS = 4
"""Steps, the first included, which only warms up, that should fit into the time of a measurement."""
FIRST_IMAGES = 4
SIDES = {"cpu": 2048, "cuda": 8192}
"""Sides of the square matrices whose product tells how many FLOP/s the device can reach."""
PRODUCTS = 5
MOST_STEPS = 20
"""Of a measurement of speed that is bounded by time."""


@dataclass(frozen=True)
class Speed:
    """What was measured; fields of the loader are None where there are no images.

    Attributes:
        images_per_pass: images of a measured step (one microbatch).
        recipe_images_per_pass: images of one microbatch of the recipe.
        step_seconds: median of a step on crops of noise.
        step_images_per_second: speed of the step alone.
        loader_images_per_second: speed of the loader alone, without its first batch.
        images_per_second: speed of step and loader together.
        data_wait: share of that time spent waiting for the loader.
        step_flops: floating point operations of a step's matrix products and convolutions.
        step_flops_per_second: `step_flops` over `step_seconds`.
        ceiling_flops_per_second: FLOP/s of the fastest of a few large matrix products in the compute type.
        ceiling_share: `step_flops_per_second` over `ceiling_flops_per_second`.
        memory_bytes: most memory in use: of the process on a CPU, of the device on CUDA.
    """

    images_per_pass: int
    recipe_images_per_pass: int
    step_seconds: float
    step_images_per_second: float
    loader_images_per_second: float | None
    images_per_second: float | None
    data_wait: float | None
    step_flops: int
    step_flops_per_second: float
    ceiling_flops_per_second: float
    ceiling_share: float
    memory_bytes: int


def prepare_without_images(config: RunConfig) -> Setup:
    """Return a checked run without images, as if its data set had `WITHOUT_IMAGES` batches.

    Raises:
        UsageError: something is wrong with the settings.
    """
    check_consistent(config)
    prepare_process(config)
    device = select_device(config.runtime.device)
    precision, reason = select_precision(config.runtime.precision, device)
    reason += set_float32_products(device, precision)
    plan = derive(config, WITHOUT_IMAGES * config.train.batch_size)
    spec = checked_spec(config, plan)
    return Setup(config, plan, ImageIndex.of([]), None, spec, device, precision, reason)


def measure(setup: Setup, *, steps: int, seconds: float) -> Speed:
    """Measure a run on this machine.

    Args:
        setup: the run.
        steps: of each measurement, at most.
        seconds: that each measurement may take, about.

    Raises:
        UsageError: not even a few images fit into memory.
        RunFailure: a microbatch does not fit into memory.
        DataError: too many images cannot be read.
    """
    asked = setup.plan.batch_size_per_pass
    check_fits(with_images(setup, min(FIRST_IMAGES, asked)))
    try:
        state = setup.new_state(setup.build_pair())
        part = with_images(setup, images_that_fit(setup, state, seconds))
        times = timed(partial(noise_step, part, state), part, steps=steps, seconds=seconds)
        loader_rate = rate = wait = None
        if len(setup.images):
            with (
                tempfile.TemporaryDirectory() as folder,
                make_loader(part, RunDir(Path(folder)), start_step=0) as loader,
            ):
                loader_rate = loader_speed(part, loader, steps=steps, seconds=seconds)
            with (
                tempfile.TemporaryDirectory() as folder,
                CropStream(part, RunDir(Path(folder)), first_step=0) as stream,
            ):
                rate, wait = both_speed(part, state, stream, steps=steps, seconds=seconds)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailure(
            f"a microbatch of {asked} images does not fit into memory: raise --train.accumulate"
        ) from error
    memory = torch.cuda.max_memory_allocated(setup.device) if on_gpu(setup) else process_memory(largest=True)
    flops, step_seconds, ceiling = step_operations(part), statistics.median(times), matrix_product_speed(setup)
    images = part.plan.batch_size
    return Speed(
        images_per_pass=images,
        recipe_images_per_pass=asked,
        step_seconds=step_seconds,
        step_images_per_second=images / step_seconds,
        loader_images_per_second=loader_rate,
        images_per_second=rate,
        data_wait=wait,
        step_flops=flops,
        step_flops_per_second=flops / step_seconds,
        ceiling_flops_per_second=ceiling,
        ceiling_share=flops / step_seconds / ceiling,
        memory_bytes=memory,
    )


def measure_speed(setup: Setup, *, seconds: float) -> float:
    """Return the images per second of a run's steps on this process's device, loading included where it has images.

    Args:
        setup: the run.
        seconds: about how long steps are measured; as many images make one as let a few fit.

    Raises:
        RunFailure: not even a few images fit into memory.
    """
    try:
        state = setup.new_state(setup.build_pair())
        part = with_images(setup, images_that_fit(setup, state, seconds))
        if not len(setup.images):
            times = timed(partial(noise_step, part, state), part, steps=MOST_STEPS, seconds=seconds)
            return part.plan.batch_size / statistics.median(times)
        with CropStream(part, None, first_step=0) as stream:
            rate, _ = both_speed(part, state, stream, steps=MOST_STEPS, seconds=seconds)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailure(f"a few images do not fit into the memory of {setup.device}: use smaller crops") from error
    return min(rate, data_rate(setup))


def measure_kept_speed(setup: Setup, *, seconds: float) -> float:
    """Return the images per second of a run's steps on images that are in memory already, decoded (`data.cache`).

    The images of one step are read, and then come again in every step; 0 where these few cannot be read, which says
    nothing of all. Arguments and errors are those of `measure_speed`.
    """
    patient = setup.config.data.model_copy(update={"max_unreadable_share": 1.0})
    setup = replace(setup, config=setup.config.model_copy(update={"data": patient}))
    try:
        state = setup.new_state(setup.build_pair())
        part = with_images(setup, images_that_fit(setup, state, seconds))
        few = even_positions(len(setup.images), min(part.plan.batch_size, len(setup.images)))
        with CropStream(replace(part, images=setup.images.only(few)), None, first_step=0) as stream:
            return both_speed(part, state, stream, steps=MOST_STEPS, seconds=seconds)[0]
    except DataError:
        return 0.0
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailure(f"a few images do not fit into the memory of {setup.device}: use smaller crops") from error


def with_images(setup: Setup, images: int) -> Setup:
    """Return the run with one microbatch of so many images a step, and more steps than any measurement takes."""
    train = setup.config.train.model_copy(update={"batch_size": images, "accumulate": 1})
    plan = setup.plan.model_copy(
        update={"batch_size": images, "batch_size_per_pass": images, "total_steps": max(setup.plan.total_steps, 10**6)}
    )
    return replace(setup, config=setup.config.model_copy(update={"train": train}), plan=plan)


def images_that_fit(setup: Setup, state: TrainState, seconds: float) -> int:
    """Return the recipe's images per microbatch, or fewer where `FEWEST_STEPS` of them would take too long."""
    limit = setup.plan.batch_size_per_pass
    few = with_images(setup, min(FIRST_IMAGES, limit))
    each = timed(partial(noise_step, few, state), few, steps=1, seconds=seconds)[0] / few.plan.batch_size
    return max(min(limit, int(seconds / FEWEST_STEPS / each)), min(FIRST_IMAGES, limit))


def noise_step(setup: Setup, state: TrainState) -> Callable[[], object]:
    """Make crops of noise, and return a step on them."""
    return partial(step_on, setup, state, random_views(setup, setup.plan.batch_size))


def step_on(setup: Setup, state: TrainState, views: Views) -> None:
    """Do one step."""
    values = step_values(setup.plan, setup.config, 0)
    train_step(state, [views], values, setup.config, setup.plan, dtype=setup.precision)


def timed(make: Callable[[], Callable[[], object]], setup: Setup, *, steps: int, seconds: float) -> list[float]:
    """Return the seconds that each step took, without the first, which warms up."""
    call = make()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) <= 1 or (len(times) <= steps and time.perf_counter() - began < seconds):
        started = time.perf_counter()
        call()
        finish_work(setup)
        times.append(time.perf_counter() - started)
    return times[1:]


def finish_work(setup: Setup) -> None:
    """Wait until the device has finished its work."""
    if on_gpu(setup):
        torch.cuda.synchronize(setup.device)


def on_gpu(setup: Setup) -> bool:
    """Whether the networks are on a CUDA device."""
    return setup.device.type == "cuda"


def loader_speed(setup: Setup, loader: BatchLoader, *, steps: int, seconds: float) -> float:
    """Return the images per second that the loader gives while nothing else runs.

    The first batches do not count: they were read ahead before the clock started.
    """
    ahead = FEWEST_STEPS
    next(loader)
    started, done = time.perf_counter(), 0
    while done < ahead + steps and (done <= ahead or time.perf_counter() - started < seconds):
        if done == ahead:
            started = time.perf_counter()
        next(loader)
        done += 1
    return (done - ahead) * setup.plan.batch_size / (time.perf_counter() - started)


def both_speed(
    setup: Setup, state: TrainState, stream: CropStream, *, steps: int, seconds: float
) -> tuple[float, float]:
    """Return the images per second of steps on loaded crops, and the share of the time spent waiting for the loader."""
    batches, loader = stream.views(), stream.loader
    step_on(setup, state, next(batches))
    finish_work(setup)
    started, before, done = time.perf_counter(), loader.wait_seconds, 0
    while done < steps and (not done or time.perf_counter() - started < seconds):
        step_on(setup, state, next(batches))
        finish_work(setup)
        done += 1
    took = time.perf_counter() - started
    return done * setup.plan.batch_size / took, (loader.wait_seconds - before) / took


def matrix_product_speed(setup: Setup) -> float:
    """Return the FLOP/s of the fastest of a few products of large square matrices in the compute type."""
    side, draw = SIDES["cuda" if on_gpu(setup) else "cpu"], generator("bench")
    left, right = (torch.randn(side, side, generator=draw).to(setup.device, setup.precision) for _ in range(2))
    times = timed(lambda: partial(torch.mm, left, right), setup, steps=PRODUCTS, seconds=float("inf"))
    return 2 * side**3 / min(times)
