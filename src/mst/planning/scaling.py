"""What a run takes on each of many devices, without one of them: memory by what it is for, and bytes sent in a step.

Sizes of parameters and what follows from them are formulas, each beside its constant. What the student's blocks keep
for the backward pass is counted: the program's own forward pass runs on torch's fake CUDA tensors, which need neither
memory nor a device. FSDP2 divides networks within a host, which has `HOST` devices. Left out are the CUDA context,
NCCL's buffers and what an allocator loses (`ALLOCATOR_SHARE`).

Letters: W devices, b images of a microbatch on one device, G global crops, K prototypes, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from mst.config.schema import RunConfig
from mst.engine.footprint import Answers, LiveBytes
from mst.errors import ConfigError
from mst.model.build import own_sizes
from mst.objective.dino import count_pairs
from mst.objective.draws import StepDraws
from mst.objective.mst import part_losses
from mst.objective.parts import student_parts
from mst.objective.records import BatchCounts, ObjectiveValues
from mst.parallel.traffic import BFLOAT16, FLOAT32, SHARDINGS, ParameterCounts, Sharding, bytes_sent, held_by
from mst.planning.setup import Setup
from mst.planning.simulation import meta_pair, random_views

MOMENTS = 2
"""AdamW's averages of a parameter, in float32 (Loshchilov and Hutter 2019)."""
GROUPS_AHEAD = 2
"""Groups of the teacher that FSDP2 holds at a time: the one at work and the one that is gathered meanwhile."""
REDUCED_AT_A_TIME = 2
"""Groups of gradients that FSDP2 copies for their reduction at a time, in float32."""
HEAD_AT_WORK = 4
"""Times the prototypes, in float32, that the backward pass of their normalisation and gain holds at a time."""
INSIDE_AGAIN = 1.5
"""Times what a block keeps: its inside computed again, and gradients of that, most of which are freed soon."""
BLOCKS_COUNTED = 2, 4
"""Of a network: each block keeps as much as any other (Swin: of the third stage, whose number is its `depth`)."""
SWIN_OTHERS, SWIN_FIRST = 6, 4
"""Blocks of Swin's other stages (Liu et al. 2021), and times that one of the first keeps what one of the third does."""
TARGETS_A_CROP, TARGETS = 3, 1
"""Tensors [b, K] that live beside the student, in float32: logits, probabilities and targets of each global crop, and
the target of the local crops."""


@dataclass(frozen=True)
class DevicePlan:
    """What one of several devices holds and sends, in bytes.

    Attributes:
        devices: W.
        sharding: the engine.
        activation_checkpointing: whether the student's blocks are computed again in the backward pass.
        images: of a microbatch on one device.
        parameters: student and decoder, float32.
        gradients: float32; with FSDP2 the whole ones until the step's last part, where a step has several.
        moments: AdamW's.
        teacher: float32.
        compute_copies: weights in the compute type (with FSDP2 the gathered ones), and what is made of them at once.
        activations: what the student's largest part keeps, with the block or the head that is at work.
        targets: logits, probabilities and targets over all prototypes.
        crops: uint8 and normalised.
        total: all of these.
        sent: of one step, by what it is for.
    """

    devices: int
    sharding: Sharding
    activation_checkpointing: bool
    images: int
    parameters: int
    gradients: int
    moments: int
    teacher: int
    compute_copies: int
    activations: int
    targets: int
    crops: int
    total: int
    sent: dict[str, int]


PARTS = ("parameters", "gradients", "moments", "teacher", "compute_copies", "activations", "targets", "crops")
"""Fields of a `DevicePlan` that add up to its total."""


@dataclass(frozen=True)
class Kept:
    """What the student's largest part keeps for the backward pass, in bytes.

    Attributes:
        image: for each image.
        block: of that inside of one block, where blocks are not computed again.
        fixed: whatever the number of images.
    """

    image: int
    block: int
    fixed: int


def device_plans(setup: Setup, devices: tuple[int, ...], device: str = "cuda") -> list[DevicePlan]:
    """Return plans for so many devices of a kind, for each engine without and with activation checkpointing.

    Raises:
        ConfigError: more devices than images in a microbatch.
    """
    batch, microbatches = setup.plan.batch_size, setup.config.train.accumulate
    for count in devices:
        if not 1 <= count <= batch // microbatches:
            parts = f" in {microbatches} microbatches" if microbatches > 1 else ""
            raise ConfigError(
                f"--devices {count}: must be from 1 to {batch // microbatches}: --train.batch-size {batch}{parts}"
            )
    counts = ParameterCounts.of(meta_pair(setup))
    plain, again = (student_keeps(_with(setup, activation_checkpointing=again), device) for again in (False, True))
    work = {False: plain.block, True: round(INSIDE_AGAIN * plain.block)}
    return [
        _device_plan(setup, counts, _Engine(count, sharding, checkpointing), kept, work[checkpointing])
        for count in devices
        for sharding in SHARDINGS
        for checkpointing, kept in ((False, plain), (True, again))
    ]


class _Engine(NamedTuple):
    devices: int
    sharding: Sharding
    activation_checkpointing: bool


def _device_plan(setup: Setup, counts: ParameterCounts, engine: _Engine, kept: Kept, work: int) -> DevicePlan:
    """Add up one plan; `work` is what the block at work takes for each image besides what is kept."""
    config, plan = setup.config, setup.plan
    compute = BFLOAT16 if compute_type(config) == torch.bfloat16 else FLOAT32
    images = ceil(plan.batch_size / (engine.devices * config.train.accumulate))
    shares = held_by(engine.devices, engine.sharding)
    copies, gradients = kept.fixed, FLOAT32 * counts.learning
    if engine.sharding == "fsdp2":
        copies = max(copies, compute * counts.student)  # gathered ones: among `fixed` are autocast's copies of them
        copies += (GROUPS_AHEAD * compute + REDUCED_AT_A_TIME * FLOAT32) * counts.group
        several = config.model.head_norm == "none" or config.train.accumulate > 1
        gradients = ceil(gradients / shares) + several * gradients
    head = HEAD_AT_WORK * FLOAT32 * plan.prototypes * config.model.head_bottleneck
    crops = config.views.global_crops
    pixels = prod(plan.global_size) * crops + prod(plan.local_size) * config.views.local_crops
    parts: dict[str, Any] = {
        "parameters": ceil(FLOAT32 * counts.student / shares),
        "gradients": gradients,
        "moments": ceil(MOMENTS * FLOAT32 * counts.learning / shares),
        "teacher": ceil(FLOAT32 * counts.teacher / shares),
        "compute_copies": copies,
        "activations": images * kept.image + max(images * work, head),
        "targets": images * FLOAT32 * plan.prototypes * (TARGETS_A_CROP * crops + TARGETS),
        "crops": images * (1 + FLOAT32) * config.data.channels * pixels,
    }
    sent = bytes_sent(
        *(counts, engine.devices, engine.sharding),
        compute=compute,
        prototypes=plan.prototypes,
        microbatches=config.train.accumulate,
    )
    return DevicePlan(*engine, images, **parts, total=sum(parts.values()), sent=sent)


def compute_type(config: RunConfig) -> torch.dtype:
    """Return the compute type of such a run on a GPU: bfloat16 unless float32 is asked for."""
    return torch.float32 if config.runtime.precision == "fp32" else torch.bfloat16


def student_keeps(setup: Setup, device: str = "cuda") -> Kept:
    """Count what the largest of the student's parts keeps, from passes of one and two images through few blocks."""
    own, (few, more) = own_sizes(setup.spec.name), BLOCKS_COUNTED
    swin = own.width != own.embed_dim
    depth = setup.config.model.depth or own.depth - swin * SWIN_OTHERS
    shallow, deep = (
        [_most_kept(_with(setup, depth=blocks), images, device) for images in (1, 2)] for blocks in (few, more)
    )
    each = [
        (high - low) / (more - few) for low, high in zip(shallow, deep, strict=True)
    ]  # of a block, for 1 and 2 images
    one, two = (low + block * (depth - few) for low, block in zip(shallow, each, strict=True))
    inside = (each[1] - each[0]) * (SWIN_FIRST if swin else 1) * _at_a_time(setup)
    return Kept(round(two - one), round(inside), max(0, round(2 * one - two)))


def _at_a_time(setup: Setup) -> float:
    """Return the share of a part's pixels that are in a block at a time: a part may have crops of both sizes."""
    views, model = setup.config.views, setup.config.model
    pixels = prod(setup.plan.global_size) * views.global_crops, prod(setup.plan.local_size) * views.local_crops
    return max(pixels) / sum(pixels) if model.head_norm == "batch" else 1.0


def _most_kept(setup: Setup, images: int, device: str) -> int:
    """Count what the first part of the student's work keeps, and the last, whichever is more."""
    config, found = setup.config, []
    values = ObjectiveValues.from_config(config.objective, teacher_temp=setup.plan.teacher_temp)
    pair = meta_pair(setup)
    with FakeTensorMode(allow_non_fake_inputs=True), Answers(dropping=False):
        live = LiveBytes(device)
        with live:
            pair = pair.to_empty(device=device)
        views = random_views(replace(setup, device=torch.device(device)), images)
        crops = len(views.global_crops)
        targets = torch.zeros(crops, images, setup.plan.prototypes, device=device)
        counts = BatchCounts(images, crops, count_pairs(crops, crops + len(views.local_crops)))
        parts = list(student_parts(views, None, targets, together=pair.student.head.couples_images))
        for part in parts[:: max(1, len(parts) - 1)]:
            before = live.now
            with _arithmetic(device, compute_type(config)), live:
                terms = part_losses(pair, part, values, StepDraws(0, 0, range(images), images), counts)
                found.append(live.now - before)
            del terms
    return max(found)


@contextmanager
def _arithmetic(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Inside, fake tensors are computed with as on a real device: torch's own autocast refuses where there is none."""
    torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_enabled(device, dtype != torch.float32)
    try:
        with _FusedAttention() if device == "cuda" else nullcontext():
            yield
    finally:
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()


class _FusedAttention(TorchFunctionMode):
    """Takes a GPU's fused attention where torch, which sees no GPU, would multiply matrices and keep more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        out: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_efficient_attention(
            *args[:3], None, True, scale=kwargs.get("scale")
        )
        return out[0]


def _with(setup: Setup, **changes: object) -> Setup:
    """Return a run with other settings of these names in `model` and `runtime`."""
    config = setup.config
    sections = {
        name: section.model_copy(update={key: changes[key] for key in changes if key in type(section).model_fields})
        for name, section in (("model", config.model), ("runtime", config.runtime))
    }
    return replace(setup, config=config.model_copy(update=sections))
