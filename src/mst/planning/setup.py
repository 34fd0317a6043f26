"""Before a run starts: what can be known about it, and checks of what can be wrong with its input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from rich.table import Table

from mst.config.choosing import choices_shown
from mst.config.derive import Measured, check_consistent, derive, needs_measuring
from mst.config.schema import RunConfig, RunPlan
from mst.data.decoding import OtherChannels, UnreadableImage, read_image
from mst.data.formats.card import check_card
from mst.data.formats.jpeg import Detail
from mst.data.labelled import LabelledFolder
from mst.data.labels.overlap import tell_parts, tell_pretraining_overlap
from mst.data.order.epochs import epoch_samples
from mst.data.sources import ImageSource, even_positions
from mst.data.statistics import MEASURED_IMAGES, channel_statistics, measured_ranges
from mst.data.value_range import BY_TYPE, Scale, ValueRanges
from mst.errors import DataError, UsageError
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.model.backbone import BackboneSpec, check_image_size
from mst.model.build import backbone_spec
from mst.model.pair import TeacherStudent, build_pair
from mst.model.recomputation import recompute_blocks
from mst.model.start import start_from
from mst.parallel.world import World
from mst.planning.environment import device_name
from mst.planning.held_out import held_out_set
from mst.planning.images import found_images, order_name
from mst.runtime import logging
from mst.runtime.device import select_device, select_precision, set_float32_products
from mst.runtime.memory import keep_freed_memory
from mst.train.compilation import compile_pair, select_compile
from mst.train.state import TrainState, new_state, replica_count
from mst.views.parameters import least_image

MOST_WORKERS = 16
THREADS, THREADS_A_CORE = 32, 4
"""Compute threads that any machine accepts; and how many for each core, where that is more."""
FEW_CORES = 8
SAMPLE = 32
"""Images that are opened before a run starts."""
LABELLED_SAMPLE = 4
"""Images of each labelled set that are opened before a run starts."""
READ_BEFORE = 256
"""Images of a set that are tried before a training, where it would otherwise meet them hours later."""


@dataclass(frozen=True)
class Setup:
    """A checked run, ready to start.

    Attributes:
        config: what was asked for.
        plan: what follows from it.
        images: the training images.
        labelled: the labelled images for k-NN while training, or None.
        spec: the backbone.
        device: where the networks go.
        precision: compute type of the networks.
        precision_reason: why.
        held_out: images that are not learned from, for scores without labels, or None.
    """

    config: RunConfig
    plan: RunPlan
    images: ImageSource
    labelled: LabelledSets | None
    spec: BackboneSpec
    device: torch.device
    precision: torch.dtype
    precision_reason: str
    held_out: ImageSet | None = None

    @property
    def scale(self) -> Scale:
        """How stored values become 8 bits."""
        return scale_of(self.plan)

    @property
    def compiled(self) -> tuple[bool, str]:
        """Whether the networks' blocks are compiled, and why."""
        if self.config.runtime.sharding == "fsdp2" and self.config.runtime.compile == "auto":
            return False, "off: nobody has tried it with networks that are divided over processes"
        return select_compile(self.config.runtime.compile, self.device, steps=self.plan.total_steps)

    def new_state(self, pair: TeacherStudent) -> TrainState:
        """Return the state of the run at step 0, its blocks compiled if they are to be."""
        if self.compiled[0]:
            compile_pair(pair, needed=self.config.runtime.compile == "on")
        return new_state(pair, self.config, self.plan)

    def build_pair(self, *, resumed: bool = False) -> TeacherStudent:
        """Return student, teacher and decoder on the device, initialised from the seed or from trained weights.

        Args:
            resumed: a checkpoint is going to replace all weights, so `model.init_from` is not read.

        Raises:
            CheckpointError: `model.init_from` holds no weights of this backbone.
        """
        pair = build_pair(
            self.config.model,
            self.plan,
            channels=self.config.data.channels,
            restoration=self.config.objective.restoration_weight > 0,
            seed=self.config.runtime.seed,
        )
        if self.config.model.init_from is not None and not resumed:
            logging.info(str(start_from(pair.student.backbone, self.config.model.init_from)))
            pair.teacher.load_state_dict(pair.student.state_dict())
        if self.config.runtime.activation_checkpointing:
            recompute_blocks(pair.student.backbone)
        return pair.to(self.device)


def prepare_process(config: RunConfig) -> None:
    """Set the number of compute threads, and keep memory that a step frees for the next step.

    Raises:
        UsageError: far more threads than cores; they would wait for each other, and a step would take minutes.
    """
    threads, cores = config.runtime.threads, os.cpu_count() or 1
    if threads > max(THREADS, THREADS_A_CORE * cores):
        raise UsageError(
            f"--runtime.threads {threads}: this machine has {cores} cores: use at most "
            f"{max(THREADS, THREADS_A_CORE * cores)} threads, or 0 for torch's choice"
        )
    if threads or config.runtime.lanes:  # lanes: the order of a sum must not depend on how many cores a process has
        torch.set_num_threads(threads or 1)
    keep_freed_memory()


def prepare(config: RunConfig) -> Setup:
    """Check settings, device and images, derive the plan, and prepare the process (`prepare_process`); write nothing.

    Raises:
        UsageError: the first thing that is wrong, with what to do.
    """
    check_consistent(config)
    prepare_process(config)
    device = select_device(config.runtime.device)
    precision, reason = select_precision(config.runtime.precision, device)
    reason += set_float32_products(device, precision)
    runtime = config.runtime
    if runtime.decode == "device":
        check_card(device, channels=config.data.channels, workers=runtime.workers, colour=runtime.colour)
    channels = config.data.channels
    found = found_images(config)
    images = found.learned
    samples = epoch_samples(images)
    world = World.current()
    plan = derive(config, samples, world.size)
    spec = checked_spec(config, plan)
    ranges = value_ranges(config, images)
    opened = check_sample(images, channels=channels, patch_size=spec.patch_size, origin="--data.channels", scale=ranges)
    if needs_measuring(config):
        mean, std = channel_statistics(images, channels=channels, scale=ranges)
        plan = derive(config, samples, world.size, measured=Measured(mean, std, min(MEASURED_IMAGES, len(images))))
    noted = {"order": order_name(images, config.data), "opened": opened}
    plan = with_ranges(plan, ranges, len(images)).model_copy(update=noted)
    labelled = labelled_sets(config, found.labelled, ranges) if found.labelled is not None else None
    held_out = held_out_set(found.apart, labelled, channels=channels, scale=ranges)
    if labelled is not None and not config.monitor.knn_exclude:
        tell_pretraining_overlap(images, labelled.val.images, "--monitor.knn-data")
    tell_parts(config.data.train)
    return Setup(config, plan, images, labelled, spec, device, precision, reason, held_out)


def value_ranges(config: RunConfig, images: ImageSource) -> ValueRanges:
    """Return which stored values are black and white, for images not of 8 bits: as given, or measured on a sample.

    Raises:
        DataError: the values of the sample have no usual range.
    """
    given = config.data.value_range
    if given != "auto":
        return ValueRanges.given(given)
    return measured_ranges(images, channels=config.data.channels, known=ValueRanges())


def with_ranges(plan: RunPlan, ranges: ValueRanges, images: int) -> RunPlan:
    """Return the plan with value ranges and, where there are some, the reason for them."""
    measured = f"measured on up to {min(MEASURED_IMAGES, images)} of the images; --data.value-range LO HI sets another"
    reason = "set by --data.value-range" if ranges.is_given else measured
    reasons = {**plan.reasons, **({"value_ranges": reason} if ranges.ranges else {})}
    return plan.model_copy(update={"value_ranges": dict(ranges.ranges), "reasons": reasons})


def scale_of(plan: RunPlan) -> Scale:
    """Return how a run's stored values become 8 bits; in a plan of an older version, each image decides for itself."""
    return BY_TYPE if plan.value_ranges is None else ValueRanges(plan.value_ranges)


def labelled_sets(config: RunConfig, found: LabelledFolder, ranges: ValueRanges) -> LabelledSets:
    """Return the labelled images for k-NN while training, checked.

    Raises:
        DataError: they are images of another kind than the run asks for, or all of one class.
    """
    monitor = config.monitor
    sets = LabelledSets.of(
        found,
        channels=config.data.channels,
        ranges=ranges,
        train_limit=monitor.knn_train_limit,
        val_limit=monitor.knn_val_limit,
    )
    check_labelled(sets, "--monitor.knn-data")
    most = FeatureSettings().max_unreadable_share
    for images in (sets.train, sets.val):
        check_readable(len(images), images.read, most=most, named="--monitor.knn-data", advice="")
    return sets


def check_labelled(sets: LabelledSets, option: str) -> None:
    """Open a few labelled images, so that images of another kind are noticed before a run and not after it.

    Args:
        sets: the images.
        option: which option named them, for the message.

    Raises:
        DataError: none of them can be decoded as `--data.channels` asks, or all training images are of one class.
    """
    for images in (sets.train, sets.val):
        problem: UnreadableImage | None = None
        for position in even_positions(len(images), LABELLED_SAMPLE).tolist():
            try:
                images.read(position)
                break
            except UnreadableImage as unreadable:
                problem = problem or unreadable
        else:
            said = _explained(problem, "--data.channels")
            raise DataError(f"{option}: none of the images tried can be decoded; the first: {said}")
    try:
        sets.check_classes()
    except DataError as error:
        raise DataError(f"{option}: {error}") from error


def check_readable(count: int, read: Callable[[int], object], *, most: float, named: str, advice: str) -> None:
    """Try up to `READ_BEFORE` images of a set, evenly spaced: too many unreadable ones would end an evaluation later.

    Args:
        count: images in the set.
        read: reads one.
        most: share that may be unreadable.
        named: what the set is, for the message.
        advice: what to do besides mending or removing them, for the message.

    Raises:
        DataError: more than `most` of the images that were tried cannot be read.
    """
    positions = even_positions(count, READ_BEFORE).tolist()
    problems = []
    for position in positions:
        try:
            read(position)
        except UnreadableImage as problem:
            problems.append(problem)
    if len(problems) > most * len(positions):
        raise DataError(
            f"{named}: {len(problems)} of {len(positions)} images looked at cannot be read, at most {most:.0%} may "
            f"(the first: {problems[0]}): mend or remove them{advice}"
        )


def checked_spec(config: RunConfig, plan: RunPlan) -> BackboneSpec:
    """Return the backbone's description after checking that its patches tile both crop sizes.

    Raises:
        UsageError: an unknown backbone, or a crop size that is no multiple of the patch.
    """
    probe = backbone_spec_of_any_size(config)
    check_image_size(plan.global_size, probe.patch_size, "--views.global-size")
    if config.views.local_crops:
        check_image_size(plan.local_size, probe.patch_size, "--views.local-size")
    return replace(probe, image_size=plan.global_size)


def backbone_spec_of_any_size(config: RunConfig) -> BackboneSpec:
    """Return the backbone's description at a side that is a multiple of every usual patch: no image has that size."""
    side = 2**6 * 3**2 * 5 * 7 * (config.model.patch_size or 1)
    return backbone_spec(config.model, image_size=(side, side), channels=config.data.channels)


def check_sample(
    images: ImageSource, *, channels: int, patch_size: int, origin: str, scale: Scale = BY_TYPE
) -> tuple[int, int]:
    """Open a few images, evenly spaced; return how many of them are different, and how many there are.

    Args:
        images: all of them.
        channels: C.
        patch_size: of the backbone; at least one image must be as large.
        origin: the option that asks for so many channels, for the message.
        scale: see `mst.data.decoding.decode_image`.

    Raises:
        DataError: none can be decoded, or all are smaller than one patch.
    """
    sizes, pixels, problems = list[tuple[int, int]](), set[bytes](), list[UnreadableImage]()
    for position in even_positions(len(images), SAMPLE).tolist():
        try:
            image = read_image(images, position, channels=channels, scale=scale)
        except UnreadableImage as problem:
            problems.append(problem)
        else:
            sizes.append((image.shape[-2], image.shape[-1]))
            pixels.add(hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest())
    if not sizes:
        tried = "none of the" if len(problems) == len(images) else f"none of {len(problems)} images tried of"
        raise DataError(f"{tried} {len(images)} images can be decoded; the first: {_explained(problems[0], origin)}")
    if max(min(size) for size in sizes) < patch_size:
        height, width = max(sizes)
        raise DataError(
            f"the images are smaller than one {patch_size} px patch (the largest of {len(sizes)} opened: "
            f"{height}x{width}): use larger images or a smaller --model.patch-size"
        )
    return len(pixels), len(sizes)


def _explained(problem: UnreadableImage | None, origin: str) -> str:
    """Return a problem as text; where the channels do not fit, with the option that asks for them."""
    return f"{problem} by {origin}" if isinstance(problem, OtherChannels) else str(problem)


def loader_workers(config: RunConfig, device: torch.device) -> int:
    """Return the number of loader processes: as asked; else many beside a GPU, few beside networks on the CPU."""
    if config.runtime.workers >= 0:
        return config.runtime.workers
    if config.runtime.decode == "device":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // World.current().local_size)
    if device.type == "cuda":
        return max(1, min(cores - 1, MOST_WORKERS))
    return 0 if cores < FEW_CORES else cores // 4


def colour_on_device(config: RunConfig, device: torch.device) -> bool:
    """Return whether colours of crops are changed on the networks' device; if not, the loader does it."""
    asked = config.runtime.colour
    return device.type != "cpu" if asked == "auto" else asked == "device"


def enough_detail(config: RunConfig) -> Detail | None:
    """Return how much detail must remain when images are decoded at a reduced size; None = decode at full size."""
    return Detail(*least_image(config.views)) if config.data.reduced_decode else None


def describe_setup(setup: Setup) -> Table:
    """Return a table of what is going to run: derived values, each with its reason."""
    plan = setup.plan
    table = Table(
        "value", "", "why", title=f"{setup.config.recipe}: {_counted(plan.total_steps, 'step')}", title_justify="left"
    )
    table.add_row("device", device_name(setup.device), "")
    table.add_row("precision", *setup.precision_reason.split(": ", 1))
    if setup.device.type == "cuda" or setup.compiled[0]:
        table.add_row("compile", *setup.compiled[1].split(": ", 1))
    replicas = replica_count(setup.config, plan, setup.device)
    if replicas > 1:
        table.add_row("replicas", str(replicas), f"of {torch.get_num_threads()} compute threads")
    if setup.config.runtime.lanes and not setup.config.runtime.threads:
        table.add_row("threads", "1", "lanes: the same sums in every process; --runtime.threads N, or more processes")
    sources = _counted(len(setup.config.data.train), "source")
    weighted = "" if plan.dataset_size == len(setup.images) else f"{len(setup.images)}, with weights, "
    table.add_row("images", str(plan.dataset_size), f"{weighted}from {sources}")
    if setup.held_out is not None:
        table.add_row("held out", str(len(setup.held_out)), "not learned from: for scores without labels")
    for key, reason in plan.reasons.items():
        table.add_row(key, format_value(getattr(plan, key)), reason)
    for option, value, reason in choices_shown(setup.config):
        table.add_row(option, format_value(value), reason)
    return table


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def format_value(value: object) -> str:
    """Write a number, numbers or value ranges in short."""
    if isinstance(value, dict):
        return str(ValueRanges(value))
    if isinstance(value, tuple):
        return " ".join(format_value(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
