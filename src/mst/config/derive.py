"""What follows from a configuration and the number of images: steps, rates, K, temperatures, each with its reason.

Rules are DINO's (Caron et al. 2021, sections 3 and 5 and its released recipe), scaled to other batches and lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mst.config.keys import flag, setting_fields
from mst.config.schema import MonitorConfig, RunConfig, RunPlan, Size, ViewsConfig
from mst.errors import ConfigError

IMAGENET_IMAGES = 1_281_167
IMAGENET_PROTOTYPES = 65_536
FEWEST_PROTOTYPES = 1_024
REFERENCE_BATCH = 1_024
REFERENCE_MOMENTUM = 0.996
LONGEST_TEACHER_MEMORY = 0.02
"""Most of a run that the teacher's average may look back on."""
SHORTEST_TEACHER_MEMORY = 10
"""Steps: a faster teacher is the student."""
SAFE_TEACHER_TEMP, LATE_TEACHER_TEMP = 0.04, 0.07
LONG_RUN_STEPS = 50_000
TEACHER_TEMP_WARMUP_EPOCHS, TEACHER_TEMP_WARMUP_SHARE = 30.0, 0.3
WARMUP_EPOCHS, WARMUP_SHARE = 10.0, 0.1
FREEZE_EPOCHS, FREEZE_SHARE = 1.0, 0.03
CONTINUED_LR_SHARE = 0.1
"""Of the usual learning rate, for weights that are trained already."""
HEAD_ONLY_EPOCHS, HEAD_ONLY_SHARE = 1.0, 0.05


Channels = tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation of each channel in [0, 1], and how many images they were measured on."""

    mean: Channels
    std: Channels
    images: int


def derive(config: RunConfig, dataset_size: int, world_size: int = 1, measured: Measured | None = None) -> RunPlan:
    """Fill in every value that the configuration leaves to the data set and the batch.

    Args:
        config: what was asked for.
        dataset_size: readable or not, the images one epoch goes through.
        world_size: processes that share a batch.
        measured: of the images, where `needs_measuring`; without it ImageNet's averages stand in.

    Raises:
        ConfigError: settings that contradict each other or the size of the data set.
    """
    check_consistent(config)
    batch = config.train.batch_size
    check_batch(batch, config.train.accumulate, world_size, dataset_size)
    steps_per_epoch = dataset_size // batch
    total_steps = max(1, round(config.train.epochs * steps_per_epoch))
    reasons = {
        "steps_per_epoch": f"{dataset_size} images // batch {batch}; the rest of an epoch is dropped",
        "total_steps": f"{config.train.epochs:g} epochs * {steps_per_epoch} steps",
    }
    lr = _learning_rate(config, reasons)
    warmup_steps = _warmup(config, steps_per_epoch, total_steps, reasons)
    prototypes = _prototypes(config, dataset_size, reasons)
    temp, temp_start, temp_warmup = _teacher_temperature(config, steps_per_epoch, total_steps, reasons)
    mean, std = _statistics(config, measured, reasons)
    return RunPlan(
        dataset_size=dataset_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        batch_size=batch,
        batch_size_per_pass=-(-batch // (config.train.accumulate * world_size)),
        lr=lr,
        warmup_steps=warmup_steps,
        prototypes=prototypes,
        teacher_temp=temp,
        teacher_temp_start=temp_start,
        teacher_temp_warmup_steps=temp_warmup,
        teacher_momentum=_teacher_momentum(config, total_steps, reasons),
        freeze_last_layer_steps=_freeze(config, steps_per_epoch, total_steps, reasons),
        freeze_backbone_steps=_freeze_backbone(config, steps_per_epoch, total_steps, reasons),
        global_size=as_pair(config.views.global_size),
        local_size=as_pair(config.views.local_size),
        mean=mean,
        std=std,
        reasons=reasons,
    )


def set_by(config: RunConfig, key: str) -> str:
    """Return who set a setting that has a value: the reason of whoever chose it, or its option."""
    chosen = config.choice.reasons if config.choice is not None else {}
    stated = config.choice.given if config.choice is not None else ()
    stated = stated if len(stated) < len(setting_fields()) - 1 else ()  # --minutes alone keeps all of a recipe
    own = key in {*config.given, *stated} or config.recipe == "custom"
    return chosen.get(key, f"set by {flag(key)}" if own else f"set by the recipe {config.recipe}")


def as_pair(size: Size) -> tuple[int, int]:
    """Return (height, width)."""
    return size if isinstance(size, tuple) else (size, size)


def check_batch(batch: int, accumulate: int, world_size: int, dataset_size: int) -> None:
    """Refuse a batch that cannot be filled or divided.

    Raises:
        ConfigError: names the largest batch that fits.
    """
    parts = accumulate * world_size
    if batch < parts:
        what = f"{accumulate} microbatches" + (f" on {world_size} processes" if world_size > 1 else "")
        raise ConfigError(f"--train.batch-size {batch} is too small for {what}: use at least {parts}")
    if batch > dataset_size:
        fits = dataset_size >= parts
        advice = f"use --train.batch-size {dataset_size} or less" if fits else "lower --train.accumulate as well"
        raise ConfigError(f"--train.batch-size {batch} is larger than the data set of {dataset_size} images: {advice}")


def check_consistent(config: RunConfig) -> None:
    """Refuse settings that are each in range but contradict one another.

    Raises:
        ConfigError: the first contradiction.
    """
    views, objective = config.views, config.objective
    for name, (low, high) in (
        ("global-scale", views.global_scale),
        ("local-scale", views.local_scale),
        ("blur-sigma", views.blur_sigma),
        ("local-blur-sigma", views.local_blur_sigma or views.blur_sigma),
    ):
        if not 0 < low <= high:
            raise ConfigError(f"--views.{name} {low:g} {high:g}: the first must be above 0 and at most the second")
    if config.data.value_range != "auto" and not config.data.value_range[0] < config.data.value_range[1]:
        low, high = config.data.value_range
        raise ConfigError(f"--data.value-range {low:g} {high:g}: the first must be below the second")
    if config.optimizer.lr is not None and config.optimizer.min_lr > config.optimizer.lr:
        raise ConfigError(f"--optimizer.min-lr {config.optimizer.min_lr:g} is above --optimizer.lr")
    if max(config.optimizer.betas) >= 1:
        raise ConfigError(f"--optimizer.betas {' '.join(map(str, config.optimizer.betas))}: each must be below 1")
    if objective.distillation_weight == 0 and objective.restoration_weight == 0:
        raise ConfigError(
            "--objective.distillation-weight and --objective.restoration-weight are both 0: nothing to learn"
        )
    lanes = config.runtime.lanes
    if lanes & (lanes - 1):
        raise ConfigError(f"--runtime.lanes {lanes}: use a power of two, or 0 for none")
    if lanes and config.runtime.sharding == "fsdp2":
        raise ConfigError("--runtime.lanes and --runtime.sharding fsdp2: lanes need all of the networks: leave one out")
    if lanes and config.model.head_norm == "batch":
        raise ConfigError(
            "--runtime.lanes and --model.head-norm batch: BatchNorm looks at the whole batch, lanes at parts of it"
        )
    _check_labelled(config.monitor)
    if objective.teacher_momentum is not None and objective.teacher_momentum > objective.teacher_momentum_end:
        raise ConfigError(
            f"--objective.teacher-momentum {objective.teacher_momentum:g} is above "
            f"--objective.teacher-momentum-end {objective.teacher_momentum_end:g}: it only rises"
        )


def _check_labelled(monitor: MonitorConfig) -> None:
    """Refuse settings that do nothing without labelled images.

    Raises:
        ConfigError: names the first, and what it needs.
    """
    if monitor.knn_data is not None:
        return
    if monitor.guard == "stop":
        raise ConfigError("--monitor.guard stop needs labelled images to score: name a folder with --monitor.knn-data")
    if monitor.knn_labels is not None:
        raise ConfigError(
            f"--monitor.knn-labels {monitor.knn_labels}: name the folder that its paths are relative to with "
            "--monitor.knn-data (or give the table itself as --monitor.knn-data)"
        )
    if monitor.knn_label_column is not None:
        raise ConfigError(
            f"--monitor.knn-label-column {monitor.knn_label_column}: name the table, or the folder of its images, with "
            "--monitor.knn-data"
        )


def _learning_rate(config: RunConfig, reasons: dict[str, str]) -> float:
    """Linear rule of Goyal et al. 2017, as DINO applies it to AdamW."""
    optimizer, batch = config.optimizer, config.train.batch_size
    if optimizer.lr is not None:
        reasons["lr"] = set_by(config, "optimizer.lr")
        return optimizer.lr
    linear = optimizer.base_lr * batch / 256
    reasons["lr"] = f"linear rule: base_lr {optimizer.base_lr:g} * batch {batch} / 256"
    if config.model.init_from is None:
        return linear
    reasons["lr"] += f", times {CONTINUED_LR_SHARE:g}: the usual rate destroys weights that are trained already"
    return max(CONTINUED_LR_SHARE * linear, optimizer.min_lr)


def _prototypes(config: RunConfig, images: int, reasons: dict[str, str]) -> int:
    """K in proportion to the data set, as a power of two.

    DINO at ImageNet's size (appendix on the output dimension): k-NN 67.8 with K 1024, 69.3 with 4096, 69.7 with 65536.
    """
    if config.model.prototypes is not None:
        reasons["prototypes"] = set_by(config, "model.prototypes")
        return config.model.prototypes
    share = IMAGENET_PROTOTYPES * images / IMAGENET_IMAGES
    count = min(max(1 << max(round(math.log2(share)), 0), FEWEST_PROTOTYPES), IMAGENET_PROTOTYPES)
    reasons["prototypes"] = (
        f"{IMAGENET_PROTOTYPES} at ImageNet's 1.28 million images, scaled to {images} as a power of two "
        f"within {FEWEST_PROTOTYPES}..{IMAGENET_PROTOTYPES}"
    )
    return count


def _teacher_temperature(
    config: RunConfig, steps_per_epoch: int, total_steps: int, reasons: dict[str, str]
) -> tuple[float, float, int]:
    """Return the temperature after warm-up, at the start, and the steps between.

    DINO's k-NN (appendix on the teacher temperature): 69.6 at 0.04, 0.1 (collapsed) at 0.08, 69.7 with 0.04 -> 0.07.
    """
    objective, epochs = config.objective, config.train.epochs
    final = objective.teacher_temp
    if final is not None:
        reasons["teacher_temp"] = set_by(config, "objective.teacher_temp")
    elif total_steps >= LONG_RUN_STEPS:
        final = LATE_TEACHER_TEMP
        reasons["teacher_temp"] = f"DINO's value after a warm-up, for runs of {LONG_RUN_STEPS} steps or more"
    else:
        final = SAFE_TEACHER_TEMP
        reasons["teacher_temp"] = f"DINO's safe value: a higher one needs a long warm-up, hence {LONG_RUN_STEPS} steps"
    start = objective.teacher_temp_start
    if start is None:
        start = min(SAFE_TEACHER_TEMP, final)
        reasons["teacher_temp_start"] = f"DINO's {SAFE_TEACHER_TEMP}, or teacher_temp if that is lower"
    else:
        reasons["teacher_temp_start"] = set_by(config, "objective.teacher_temp_start")
    asked = objective.teacher_temp_warmup_epochs
    if asked is not None:
        reasons["teacher_temp_warmup_steps"] = set_by(config, "objective.teacher_temp_warmup_epochs")
        return final, start, min(round(asked * steps_per_epoch), total_steps)
    if start == final:
        reasons["teacher_temp_warmup_steps"] = "none: the temperature is constant"
        return final, start, 0
    warmup = min(TEACHER_TEMP_WARMUP_EPOCHS, TEACHER_TEMP_WARMUP_SHARE * epochs)
    reasons["teacher_temp_warmup_steps"] = (
        f"{TEACHER_TEMP_WARMUP_EPOCHS:g} epochs (DINO), at most {TEACHER_TEMP_WARMUP_SHARE:.0%} of the run"
    )
    return final, start, round(warmup * steps_per_epoch)


def _teacher_momentum(config: RunConfig, total_steps: int, reasons: dict[str, str]) -> float:
    """Keep the teacher's memory in images (EMA scaling rule), but only a small share of the run.

    momentum ** (batch / 1024) is the rule of Busbridge et al. 2023 (How to Scale Your EMA), which agrees with the
    advice in DINO's code to raise the momentum for small batches. A run of few steps would then end before its
    teacher has left the initialisation; BYOL too lowers it for shorter runs (0.996 for 1000 epochs, 0.99 for 300).
    """
    if config.objective.teacher_momentum is not None:
        reasons["teacher_momentum"] = set_by(config, "objective.teacher_momentum")
        return config.objective.teacher_momentum
    scaled: float = REFERENCE_MOMENTUM ** (config.train.batch_size / REFERENCE_BATCH)
    memory = 1 / (1 - scaled)
    longest = max(LONGEST_TEACHER_MEMORY * total_steps, SHORTEST_TEACHER_MEMORY)
    if memory <= longest:
        reasons["teacher_momentum"] = (
            f"EMA scaling rule: {REFERENCE_MOMENTUM} ** (batch {config.train.batch_size} / {REFERENCE_BATCH})"
        )
        return min(scaled, config.objective.teacher_momentum_end)
    reasons["teacher_momentum"] = (
        f"averages over {longest:.0f} steps, {LONGEST_TEACHER_MEMORY:.0%} of this run but at least "
        f"{SHORTEST_TEACHER_MEMORY} (the EMA scaling rule's {memory:.0f} steps would be too slow)"
    )
    return min(1 - 1 / longest, config.objective.teacher_momentum_end)


def _warmup(config: RunConfig, steps_per_epoch: int, total_steps: int, reasons: dict[str, str]) -> int:
    """Ten epochs as DINO, but at most a tenth of the run."""
    asked = config.schedule.warmup_epochs
    if asked is not None:
        reasons["warmup_steps"] = set_by(config, "schedule.warmup_epochs")
        return min(round(asked * steps_per_epoch), total_steps)
    reasons["warmup_steps"] = f"{WARMUP_EPOCHS:g} epochs (DINO), at most {WARMUP_SHARE:.0%} of the run"
    return min(round(WARMUP_EPOCHS * steps_per_epoch), round(WARMUP_SHARE * total_steps))


def _freeze(config: RunConfig, steps_per_epoch: int, total_steps: int, reasons: dict[str, str]) -> int:
    """One epoch as DINO, but at most a few percent of the run."""
    asked = config.schedule.freeze_last_layer_epochs
    if asked is not None:
        reasons["freeze_last_layer_steps"] = set_by(config, "schedule.freeze_last_layer_epochs")
        return min(round(asked * steps_per_epoch), total_steps)
    reasons["freeze_last_layer_steps"] = f"{FREEZE_EPOCHS:g} epoch (DINO), at most {FREEZE_SHARE:.0%} of the run"
    return min(round(FREEZE_EPOCHS * steps_per_epoch), round(FREEZE_SHARE * total_steps))


def _freeze_backbone(config: RunConfig, steps_per_epoch: int, total_steps: int, reasons: dict[str, str]) -> int:
    """With trained weights, one epoch for head and decoder alone: gradients through fresh ones are noise."""
    asked = config.schedule.freeze_backbone_epochs
    if asked is not None:
        reasons["freeze_backbone_steps"] = set_by(config, "schedule.freeze_backbone_epochs")
        return min(round(asked * steps_per_epoch), total_steps)
    if config.model.init_from is None:
        return 0
    reasons["freeze_backbone_steps"] = (
        f"trained weights, fresh head: {HEAD_ONLY_EPOCHS:g} epoch for head and decoder alone, "
        f"at most {HEAD_ONLY_SHARE:.0%} of the run"
    )
    return min(round(HEAD_ONLY_EPOCHS * steps_per_epoch), round(HEAD_ONLY_SHARE * total_steps))


def needs_measuring(config: RunConfig) -> bool:
    """Whether mean or standard deviation come from the images: asked for, or not RGB and nothing else was said."""
    views, default = config.views, ViewsConfig()
    unsaid = (views.mean, views.std) == (default.mean, default.std)
    return "auto" in (views.mean, views.std) or (config.data.channels != len(default.mean) and unsaid)


def _statistics(config: RunConfig, measured: Measured | None, reasons: dict[str, str]) -> tuple[Channels, Channels]:
    """Return mean and standard deviation for each of the channels."""
    views, channels, default = config.views, config.data.channels, ViewsConfig()
    found: dict[str, Channels] = {}
    everything = needs_measuring(config) and "auto" not in (views.mean, views.std)
    for name in ("mean", "std"):
        said, usual = getattr(views, name), getattr(default, name)
        if said != "auto" and not everything:
            found[name] = said
        elif measured is not None:
            found[name] = getattr(measured, name)
            reasons[name] = f"measured on {measured.images} of the images"
        else:
            found[name] = (round(sum(usual) / len(usual), 3),) * channels
            reasons[name] = f"average of ImageNet's, for each of {channels} channels"
    if not len(found["mean"]) == len(found["std"]) == channels:
        raise ConfigError(
            f"--views.mean has {len(found['mean'])} and --views.std {len(found['std'])} values: "
            f"each needs {channels}, one for each of --data.channels (or: auto)"
        )
    return found["mean"], found["std"]
