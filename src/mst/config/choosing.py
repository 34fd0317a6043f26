"""Settings chosen for images, device and time: pure rules, each with its reason; what the user set stays.

First everything but the length is chosen (`choose`); then the chosen run's speed is measured, and the length and what
follows from the number of steps are chosen (`lengthen`). Both depend on nothing but their arguments.

Sources of the rules: DINO (Caron et al. 2021) for large networks and long runs; for small data and short runs this
project's trials (docs/recipes.md), and what DINO's appendix says of momentum, temperature and prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mst.config.facts import DeviceFacts, SetFacts
from mst.config.keys import flag
from mst.config.ladder import (
    LADDER,
    LOCAL_SHARE,
    Chosen,
    affordable,
    local_side,
    patch_for,
    rung,
    shape_for,
    wanted_side,
)
from mst.config.load import flatten, override
from mst.config.schema import Choice, RunConfig
from mst.errors import UsageError

SHOWN_BY_PLAN = {"views.mean", "views.std", "optimizer.lr", "model.prototypes", "objective.teacher_temp"}
"""Chosen settings that a plan shows as what follows from them."""
USUAL_MINUTES: Mapping[str, float] = {"cpu": 15.0, "cuda": 240.0}
"""Length of a run that nobody gave a time for."""
TRAINING_SHARE = 0.9
"""Of the time; the rest goes into the start, checkpoints and pictures."""
SPEED_HELD = 0.9
"""Of the speed measured now, what another measurement may find."""
MOST_EPOCHS = 1_500.0
"""Beyond, a network learns its images by heart."""
STEP_BATCHES = 1_000
"""Steps that a short run should have at least; its batch is halved for them, once: BatchNorm needs the rest. On
Imagenette 801 steps of 32 found more than 435 of 64 with fewer images (docs/recipes.md)."""
GPU_BATCH, CPU_BATCH, LEAST_BATCH = 256, 64, 32
MEMORY_SHARE = 0.6
"""Of a device's memory that the choice counts on."""


@dataclass
class Picks:
    """Values and reasons as they are picked; a setting that was given stays, and its value is what rules go on with."""

    config: RunConfig
    values: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note what is given."""
        assert self.config.choice is not None
        self.given = frozenset(self.config.choice.given)
        self.before = flatten(self.config)

    def pick(self, key: str, value: object, reason: str) -> object:
        """Set a setting unless it was given; return what it is."""
        if key in self.given:
            return self.before[key]
        self.values[key] = value
        self.reasons[key] = reason
        return value

    def side(self, key: str, value: int | tuple[int, int], reason: str) -> int:
        """Pick a size; return its shorter side."""
        picked = self.pick(key, value, reason)
        return min(picked) if isinstance(picked, tuple) else int(str(picked))

    def whole(self, key: str, value: int, reason: str) -> int:
        """Pick a whole number."""
        picked = self.pick(key, value, reason)
        return picked if isinstance(picked, int) else value  # "none" is whatever the network has

    def done(self, minutes: float, facts: dict[str, dict[str, object]]) -> RunConfig:
        """Return the configuration with all picks."""
        choice = self.config.choice
        assert choice is not None
        decided = Choice(
            minutes=minutes,
            given=choice.given,
            reasons={**choice.reasons, **self.reasons},
            facts={**choice.facts, **facts},
        )
        plain = override(self.config.model_copy(update={"choice": None}), self.values)
        return plain.model_copy(update={"choice": decided})


def allowed_minutes(config: RunConfig, device: DeviceFacts) -> tuple[float, str]:
    """Return how long a run may take, and who says so."""
    minutes = config.choice.minutes if config.choice else None
    if minutes is not None:
        return minutes, f"--minutes {minutes:g}"
    usual = USUAL_MINUTES[device.kind]
    return usual, f"{usual:g} minutes, usual on a {device.name} (--minutes sets another time)"


def choices_shown(config: RunConfig) -> list[tuple[str, object, str]]:
    """Return option, value and reason of each setting that was given or chosen and that a plan does not show itself."""
    values, reasons = flatten(config), config.choice.reasons if config.choice is not None else {}
    reasons = {**dict.fromkeys(config.given, f"given; all else is of {config.recipe}"), **reasons}
    return [(flag(key), values[key], reason) for key, reason in reasons.items() if key not in SHOWN_BY_PLAN]


def choose(config: RunConfig, images: SetFacts, device: DeviceFacts, *, patch: int | None = None) -> RunConfig:
    """Choose everything but the length.

    Args:
        config: with a `choice` that is not made yet.
        images, device: what is known of them.
        patch: pixels of a patch of a backbone that was given; None = none was.

    Returns:
        The configuration; the choice names each setting with its reason.
    """
    picks = Picks(config)
    minutes, _ = allowed_minutes(config, device)
    budget = device.flops_per_second * minutes * 60 * TRAINING_SHARE
    _channels(picks, images)
    network = _network(picks, images, budget, patch, minutes)
    _views(picks, images, network)
    _colours(picks, images)
    _restoration(picks, images)
    _head(picks, images, network)
    _batch(picks, images, device, network, budget)
    return picks.done(minutes, {})


def _channels(picks: Picks, images: SetFacts) -> None:
    """Grey images are read as one channel; mean and deviation are measured where they are not photographs in colour."""
    if images.grey:
        picks.pick("data.channels", 1, "all images looked at are grey, also where they are stored as RGB")
        for key in ("views.mean", "views.std"):
            picks.pick(key, "auto", "measured: the images are grey")
    else:
        for key in ("views.mean", "views.std"):
            picks.pick(key, "auto", "measured: the images may be brighter or darker than ImageNet's")


def _network(picks: Picks, images: SetFacts, budget: float, patch: int | None, minutes: float) -> Chosen:
    """Pick crops' side, patch and network."""
    given = "model.backbone" in picks.given
    found = affordable(images, budget, LADDER[-1:] if given else LADDER)
    wanted = wanted_side(images)
    why = f"the images have {images.size[0]}x{images.size[1]} px, {images.detail} px keep 90 % of their fine structure"
    if found.side < wanted:
        why += f"; {wanted} px would leave too few steps in {minutes:g} minutes here"
    if max(images.size) > 1.5 * images.side:
        why += "; oblong images: crops may be, too (--views.global-size H W)"
    asked = picks.before["model.patch_size"] if "model.patch_size" in picks.given else None
    own_patch = patch or (asked if isinstance(asked, int) else None)
    unit = own_patch or patch_for(found.side)
    fitting = max(round(found.side / unit), 2) * unit
    side = picks.side("views.global_size", fitting, why)
    if own_patch is None:
        own_patch = next((size for size in (patch_for(side), 8, 4, 16, 14, 2) if side % size == 0), 1)
    if not given:
        network = found.network
        seen = round(budget / shape_for(network, side, own_patch, found.local_crops).step_flops, -2)
        picks.pick("model.backbone", network.timm, f"{network.name}: about {seen:,.0f} images can be seen in the time")
        width = picks.whole("model.embed_dim", network.width, f"of the {network.name}")
        picks.whole("model.depth", network.depth, f"of the {network.name}")
        heads = network.heads if width == network.width else max(width // 32, 1)
        picks.pick("model.num_heads", heads, f"{width // heads} wide each")
        picks.pick("model.patch_size", own_patch, f"cuts {side} px into {(side // own_patch) ** 2} tokens")
        if network.small:
            picks.pick("model.init", "xavier_uniform", "a narrow network learns sooner from it")
            picks.pick("model.drop_path", 0.0, "a shallow network in a short run needs none")
    return Chosen(found.network, side, own_patch, found.local_crops)


def _views(picks: Picks, images: SetFacts, chosen: Chosen) -> None:
    """Pick number, size and scale of the crops."""
    local_crops = picks.whole("views.local_crops", chosen.local_crops, "more cost time, fewer compare less")
    if local_crops:
        side = local_side(chosen.side, chosen.patch)
        picks.pick("views.local_size", side, f"about {LOCAL_SHARE:g} of {chosen.side} px, in patches of {chosen.patch}")
    low, least, most, why = (0.4, 0.1 if chosen.network.small else 0.05, 0.4, "DINO's for photographs in colour")
    if not images.photographs:
        why = "two crops must share the small places that tell such images apart"
        low, least, most = 0.5, 0.15, 0.5
    picks.pick("views.global_scale", (low, 1.0), why)
    least = max(least, round(min((14 / images.side) ** 2, 0.2), 2))
    picks.pick("views.local_scale", (least, most), f"{why}; at least 14 px of an image of {images.side} px")


def _restoration(picks: Picks, images: SetFacts) -> None:
    """Weigh restoration more where self-distillation has little to tell images apart by."""
    if not images.photographs and picks.before["objective.restoration_weight"]:
        reason = "images that look alike: their fine structure teaches more than which image a crop is of"
        picks.pick("objective.restoration_weight", 1.0, reason)


def _colours(picks: Picks, images: SetFacts) -> None:
    """Pick changes of colour: what is varied most is what the network learns first to ignore."""
    if images.photographs:
        reason = "DINO's for photographs in colour, blur and solarize weaker: small crops have little to spare"
        values: dict[str, object] = {
            "jitter": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
            "grey": 0.2,
        }
        values |= {"blur": (0.5, 0.1, 0.0), "solarize": 0.1}
    else:
        what = "grey images" if images.grey else f"{images.channels} channels"
        reason = f"weak: brightness and contrast of {what} mean something, as fine lines do"
        values = {"jitter": 0.8, "brightness": 0.1, "contrast": 0.1}
        values |= {"blur": (0.2, 0.1, 0.0), "solarize": 0.0}
    for key, value in values.items():
        picks.pick(f"views.{key}", value, reason)


def _head(picks: Picks, images: SetFacts, chosen: Chosen) -> None:
    """Pick the projection head: small for small networks, few prototypes for few images."""
    if chosen.network.small and "model.backbone" not in picks.given:
        picks.pick("model.head_hidden", 512, "a small network has a small head")
        picks.pick("model.head_bottleneck", 128, "a small network has a small head")
    share = 2 ** math.ceil(math.log2(max(images.different / 4, 1)))
    most = 65_536 if images.different > 500_000 else 4_096 if images.different > 50_000 else 1_024
    picks.pick(
        "model.prototypes",
        min(max(share, 256), most),
        f"one for every two to four of {images.different:,} different images, 256 to {most}",
    )


def _batch(picks: Picks, images: SetFacts, device: DeviceFacts, chosen: Chosen, budget: float) -> None:
    """Pick the batch, its passes, and whether the head has BatchNorm."""
    usual = GPU_BATCH if device.kind == "cuda" else CPU_BATCH
    batch = usual
    seen = min(budget / chosen.cost, MOST_EPOCHS * images.count)
    while batch > LEAST_BATCH and seen / batch < STEP_BATCHES:
        batch //= 2
    while batch > max(1, images.count // 2):
        batch //= 2
    batch = max(batch, min(device.processes, images.count))
    batch = picks.whole(
        "train.batch_size",
        batch,
        f"usual on a {device.name}: {usual}; "
        f"at most half of the images, and {STEP_BATCHES} steps should fit into the time",
    )
    kept = shape_for(chosen.network, chosen.side, chosen.patch, chosen.local_crops).bytes_kept
    parts = math.ceil(batch * kept / device.processes / (MEMORY_SHARE * device.memory_bytes))
    if parts > 1:
        picks.pick("train.accumulate", min(parts, batch), f"a pass of all {batch} images would not fit into memory")
    norm = batch >= LEAST_BATCH and chosen.network.small and not picks.before["runtime.lanes"]
    picks.pick(
        "model.head_norm",
        "batch" if norm else "none",
        "short runs of small networks learn sooner with it"
        if norm
        else f"needs a batch of {LEAST_BATCH}, and helps small networks",
    )


def lengthen(config: RunConfig, images: SetFacts, device: DeviceFacts, *, images_per_second: float) -> RunConfig:
    """Choose the length of a run, and what depends on its steps, by its measured speed.

    Raises:
        UsageError: the time is too short for one pass over the images; says what is possible.
    """
    picks = Picks(config)
    minutes, who = allowed_minutes(config, device)
    seen = images_per_second * minutes * 60 * TRAINING_SHARE
    batch = config.train.batch_size
    per_epoch = max(images.count // batch, 1)
    epochs = min(math.floor(100 * seen / (per_epoch * batch)) / 100, MOST_EPOCHS)
    reason = f"{images_per_second:.3g} images/s measured, {who}, {TRAINING_SHARE:.0%} of it for steps"
    if epochs >= MOST_EPOCHS:
        reason = f"more would learn the images by heart; there is time for {seen / images.count:,.0f}"
    if epochs < 1 and "train.epochs" not in picks.given:
        raise UsageError(_too_short(images.count, images_per_second, minutes, picks.given))
    picked = picks.pick("train.epochs", epochs, reason)
    steps = max(1, round(float(str(picked)) * per_epoch))
    _rates(picks, config, images, steps)
    _intervals(picks, steps)
    return picks.done(minutes, {"speed": {"images_per_second": round(images_per_second, 3)}})


def _rates(picks: Picks, config: RunConfig, images: SetFacts, steps: int) -> None:
    """Pick rate, decay, clipping, temperature and momentum; small networks on photographs as in docs/recipes.md."""
    network, batch = rung(config.model.embed_dim, config.model.depth), config.train.batch_size
    careful = not (images.photographs and network.small)
    if config.model.init_from is None and not {"optimizer.lr", "optimizer.base_lr"} & picks.given:
        base = network.lr / 2 if careful and network.small else network.lr
        lr = float(f"{base * math.sqrt(batch / 64):.3g}")
        why = ", half of the usual: such images look alike" if base < network.lr else ""
        picks.pick("optimizer.lr", lr, f"{base:g} at a batch of 64{why}, by the root of {batch} / 64")
    if network.small:
        picks.pick("optimizer.weight_decay_end", picks.before["optimizer.weight_decay"], "small networks need no more")
        reason = "small networks: a single odd batch must not throw the student off"
        picks.pick("optimizer.clip", 1.0 if careful else 3.0, reason)
        # The teacher averages over a share of the run that lets it follow, and stays slower than the student.
        parts, longest, longer = (20, 50.0, 4) if careful else (25, 35.0, 3)
        memory = min(max(steps / parts, 20.0), longest)
        end = 1 - 1 / (longer * memory)
        most = config.objective.teacher_momentum_end  # the schema's 1 unless it was given
        first = min(round(1 - 1 / memory, 4), most)
        start = picks.pick("objective.teacher_momentum", first, f"averages over {memory:.0f} of {steps} steps")
        end = max(round(end, 4), start if isinstance(start, float) else 0.0)
        picks.pick(
            "objective.teacher_momentum_end",
            end,
            f"{longer * memory:.0f} steps at the end: a teacher that stops would be left behind in so short a run",
        )
        temperature, why = (0.04, "DINO's safe value: lower ones follow noise in images that look alike")
        if not careful:
            temperature, why = (0.03, "sharp: a short run has no time to sharpen its targets")
        picks.pick("objective.teacher_temp", temperature, why)
        reason = "that of the last step: a slower one lags behind so short a run, and outputs swing between few and all"
        picks.pick("objective.center_momentum", 0.0, reason)


def _intervals(picks: Picks, steps: int) -> None:
    """Pick how often a run is looked at and saved: by its steps, so that a short one is, too."""
    for key, value, times in (
        ("monitor.every_steps", min(max(steps // 100, 1), 50), "a hundred rows or more"),
        ("monitor.knn_every_steps", max(steps // 8, 1), "eight times in the run"),
        ("checkpoint.every_steps", min(max(steps // 10, 1), 1000), "ten or more in the run"),
    ):
        picks.pick(key, value, f"{times}: {steps} steps")


def _too_short(count: int, speed: float, minutes: float, given: frozenset[str]) -> str:
    """Say what is possible where one pass takes too long."""
    needed = count / (speed * 60 * TRAINING_SHARE)
    possible = int(minutes * 60 * TRAINING_SHARE * speed * SPEED_HELD)
    smaller = " or smaller crops (--views.global-size)" if "views.global_size" in given else ""
    part = f", or at most {flag('data.limit')} {possible} of them" if possible >= 2 else ""
    return (
        f"--minutes {minutes:g} is too short for one pass over {count:,} images to learn from at {speed:.3g} images/s: "
        f"give --minutes {math.ceil(needed * 10) / 10:g} or more{smaller}{part}"
    )
