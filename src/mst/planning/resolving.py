"""From a run that leaves its settings to images, device and time to one that says them all (`mst.config.choosing`).

The images are looked at, a small network's steps are timed, the rules choose, and the chosen run is timed. Nothing is
kept beside the configuration: a run that is resumed or replayed has its choice in config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from mst.config.choosing import MOST_EPOCHS, TRAINING_SHARE, allowed_minutes, choose, lengthen
from mst.config.derive import check_consistent, derive
from mst.config.facts import DeviceFacts, SetFacts, Shape
from mst.config.load import flatten, override
from mst.config.schema import RunConfig
from mst.data.look import look_at
from mst.data.reader import LARGEST_KEPT, quarter_of_memory
from mst.data.sources import ImageIndex, ImageSource
from mst.model.build import own_sizes
from mst.parallel.world import World, alone
from mst.planning.fitting import check_fits
from mst.planning.images import found_images
from mst.planning.measuring import WITHOUT_IMAGES, measure_kept_speed, measure_speed
from mst.planning.setup import (
    Setup,
    backbone_spec_of_any_size,
    checked_spec,
    loader_workers,
    prepare_process,
    value_ranges,
)
from mst.runtime import logging
from mst.runtime.device import free_memory, select_device, select_precision

PROBE_SECONDS, SPEED_SECONDS = 3.0, 6.0
"""About how long the small network, and then the chosen run, are timed."""
ATTEMPTS, EXPECTED_SHARE = 3, 0.7
"""How often a run is chosen at most, and the share of the expected speed that is not worth another choice."""
FEW_SEEN, ENOUGH_SEEN = 18_000, 50_000
"""Above what runs saw that helped little or not on five kinds of images (11,000 to 15,000; from 19,000 on they did on
four of five), and what runs saw that gained most on photographs: the figures are in docs/recipes.md."""
SMALL = {"cpu": ("vit_tiny_patch16_224", 128, 4, 64, 8, 16), "cuda": ("deit_small_patch16_224", 384, 12, 128, 16, 64)}
"""The network that tells a device's speed: name, width, depth, side, patch, batch."""


def resolved(config: RunConfig) -> RunConfig:
    """Return a run with all its settings, chosen where it leaves them to images, device and time.

    The first process chooses; the others receive it. A run that has made its choice, or has none to make, is returned.

    Raises:
        UsageError: the images cannot be read, or the time is too short for one pass over them.
    """
    if config.choice is None or config.choice.facts:
        return config
    return World.current().from_first(lambda: _chosen(config))


def _chosen(config: RunConfig) -> RunConfig:
    processes = World.current().size
    check_consistent(config)
    prepare_process(config)
    with alone():
        device = select_device(config.runtime.device)
        facts, images = look_at_images(config)
        place = device_facts(config, device, processes)
        patch = backbone_spec_of_any_size(config).patch_size if "model.backbone" in _given(config) else None

        allowed = allowed_minutes(config, place)[0] * 60 * TRAINING_SHARE

        def measure(chosen: RunConfig) -> tuple[float, float]:
            setup = _setup(chosen, images, device, processes)
            check_fits(setup)
            fresh = measure_speed(setup, seconds=SPEED_SECONDS)
            kept = kept_share(chosen, facts) if loader_workers(chosen, device) == 0 and processes == 1 else 0.0
            if kept == 0 or fresh * allowed <= len(images):
                return processes * fresh, backbone_flops(setup)
            again = max(fresh, measure_kept_speed(setup, seconds=SPEED_SECONDS))
            return over_a_run(fresh, again, kept, images=len(images), seconds=allowed), backbone_flops(setup)

        chosen, place, speed = settled(lambda place: choose(config, facts, place, patch=patch), measure, place)
    found = lengthen(chosen, facts, place, images_per_second=speed)
    _warn_of_length(found, place, speed, len(images))
    warn_of_few(found, place, speed, len(images))
    return with_facts(found, facts, place)


def kept_share(config: RunConfig, images: SetFacts) -> float:
    """Return the share of the images that stay in memory once they are decoded (`data.cache`), by their usual size."""
    size = math.prod(images.size) * config.data.channels
    if not config.data.cache or size > LARGEST_KEPT:
        return 0.0
    return min(quarter_of_memory() / (size * images.count), 1.0)


def over_a_run(fresh: float, again: float, kept: float, *, images: int, seconds: float) -> float:
    """Return the mean speed of a run: its first epoch decodes every image, later ones those that were not kept.

    Args:
        fresh: images per second of the first epoch.
        again: images per second where all images are in memory.
        kept: share of the images that are.
        images: of an epoch.
        seconds: that the run may take.
    """
    left = seconds - images / fresh
    if left <= 0:
        return fresh
    later = 1 / (kept / again + (1 - kept) / fresh)
    return (images + left * later) / seconds


def settled(
    choice: Callable[[DeviceFacts], RunConfig], measure: Callable[[RunConfig], tuple[float, float]], place: DeviceFacts
) -> tuple[RunConfig, DeviceFacts, float]:
    """Choose and measure; choose again while the run does far fewer operations a second than the rules counted on.

    Decoding, or other work on the machine, may slow a run more than the small network that told the device's speed.

    Args:
        choice: what to run on a device.
        measure: a run's images per second, and the operations that the rules count for an image.
        place: the device, by a small network.

    Returns:
        The run, the device as the rules saw it, and the run's images per second.
    """
    for attempt in range(ATTEMPTS):
        chosen = choice(place)
        speed, operations = measure(chosen)
        slower = replace(place, flops_per_second=speed * operations)
        enough = slower.flops_per_second >= EXPECTED_SHARE * place.flops_per_second
        if enough or attempt == ATTEMPTS - 1 or flatten(choice(slower)) == flatten(chosen):
            break
        logging.info(f"{speed:.3g} images/s are fewer than expected: choosing again")
        place = slower
    return chosen, place, speed


def with_facts(config: RunConfig, images: SetFacts, device: DeviceFacts) -> RunConfig:
    """Return the configuration whose choice says what it was made from."""
    assert config.choice is not None
    facts = {**config.choice.facts, "images": asdict(images), "device": asdict(device)}
    return config.model_copy(update={"choice": config.choice.model_copy(update={"facts": facts})})


def _given(config: RunConfig) -> tuple[str, ...]:
    return config.choice.given if config.choice else ()


def _warn_of_length(config: RunConfig, device: DeviceFacts, speed: float, images: int) -> None:
    """Say when the epochs that were asked for take another time than was allowed."""
    if "train.epochs" not in _given(config) or config.choice is None or config.choice.minutes is None:
        return
    minutes, who = allowed_minutes(config, device)
    needed = config.train.epochs * images / speed / 60
    if needed > minutes:
        logging.warn(
            f"--train.epochs {config.train.epochs:g} takes about {needed:.3g} minutes at {speed:.3g} images/s, {who}: "
            "leave --train.epochs away to fit it into the time"
        )


def warn_of_few(config: RunConfig, device: DeviceFacts, speed: float, images: int) -> None:
    """Say when the time lets a network that starts from nothing see so few images that it is not likely to help."""
    epochs = config.train.epochs
    seen = epochs * images
    if config.recipe != "own-images" or config.model.init_from is not None:
        return
    if seen >= FEW_SEEN or epochs >= MOST_EPOCHS or "train.epochs" in _given(config):
        return
    _, who = allowed_minutes(config, device)
    warn = f"about {seen:,.0f} images can be seen at {speed:.3g} images/s, {who}: runs of so few helped k-NN by 4 "
    warn += "points at most, a linear probe not at all (docs/recipes.md)"
    needed = ENOUGH_SEEN / speed / 60 / TRAINING_SHARE
    logging.warn(f"{warn}: allow --minutes {math.ceil(needed)}, or start from released weights (--init timm:NAME)")


def look_at_images(config: RunConfig) -> tuple[SetFacts, ImageSource]:
    """Return what the images look like that are learned from, and these images.

    Raises:
        UsageError: there are none that can be read.
    """
    data = config.data
    images = found_images(config, tell=False).learned
    return look_at(images, channels=data.channels, scale=value_ranges(config, images)), images


def device_facts(config: RunConfig, device: torch.device, processes: int) -> DeviceFacts:
    """Return what a device can do, by a few steps of a small network."""
    name, width, depth, side, patch, batch = SMALL[device.type]
    probe = override(
        RunConfig(runtime=config.runtime.model_copy(update={"compile": "off", "sharding": "ddp", "lanes": 0})),
        {
            "model.backbone": name,
            "model.embed_dim": width,
            "model.depth": depth,
            "model.num_heads": width // 32 if device.type == "cpu" else 6,
            "model.patch_size": patch,
            "model.prototypes": 1024,
            "model.head_hidden": 512,
            "model.head_bottleneck": 128,
            "views.global_size": side,
            "views.local_size": side // 2,
            "views.local_crops": 4,
            "train.batch_size": batch,
        },
    )
    setup = _setup(probe, ImageIndex.of([]), device)
    speed = measure_speed(setup, seconds=PROBE_SECONDS)
    return DeviceFacts(
        kind=device.type,
        flops_per_second=backbone_flops(setup) * speed * processes,
        memory_bytes=free_memory(device),
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
        processes=processes,
    )


def backbone_flops(setup: Setup) -> float:
    """Return the operations of a step for one image, as the rules count them."""
    model, views = setup.config.model, setup.config.views
    patch, plan, own = setup.spec.patch_size, setup.plan, own_sizes(setup.spec.name)
    tokens = [math.prod(size) // patch**2 for size in (plan.global_size, plan.local_size)]
    return Shape(
        width=model.embed_dim or own.embed_dim,
        depth=model.depth or own.depth,
        global_tokens=tokens[0],
        local_tokens=tokens[1],
        global_crops=views.global_crops,
        local_crops=views.local_crops,
    ).step_flops


def _setup(config: RunConfig, images: ImageSource, device: torch.device, processes: int = 1) -> Setup:
    """Return a run that is measured; normalisation and value ranges make no difference to its speed."""
    precision, reason = select_precision(config.runtime.precision, device)
    plan = derive(config, len(images) or config.train.batch_size * WITHOUT_IMAGES, processes)
    if len(images):
        plan = plan.model_copy(update={"value_ranges": dict(value_ranges(config, images).ranges)})
    return Setup(config, plan, images, None, checked_spec(config, plan), device, precision, reason)
