"""A run so small that a step takes milliseconds: the configuration, its plan, synthetic batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mst.config.derive import derive
from mst.config.schema import RunConfig, RunPlan
from mst.model.pair import build_pair
from mst.runtime.seeding import generator
from mst.train.state import TrainState, new_state
from mst.views.record import Crops

BASE: dict[str, dict[str, Any]] = {
    "views": {"global_size": 16, "local_size": 8, "local_crops": 2},
    "model": {
        "backbone": "deit_tiny_patch16_224",
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "prototypes": 24,
        "head_hidden": 24,
        "head_bottleneck": 8,
    },
    "train": {"batch_size": 8, "epochs": 2},
    "schedule": {"warmup_epochs": 0.2, "freeze_last_layer_epochs": 0.5},
    "checkpoint": {"every_steps": 2},
    "monitor": {"every_steps": 2, "knn_every_steps": 3, "tensorboard": False},
    "runtime": {"precision": "fp32", "workers": 0},
}


def tiny_config(**sections: dict[str, Any]) -> RunConfig:
    """Eight images a step, a ViT of two blocks; `sections` override single keys."""
    merged = {name: {**BASE.get(name, {}), **sections.get(name, {})} for name in {**BASE, **sections}}
    return RunConfig.model_validate(merged)


def tiny_plan(config: RunConfig, steps: int = 7) -> RunPlan:
    """A plan of exactly `steps` steps."""
    plan = derive(config, dataset_size=4 * config.train.batch_size)
    return plan.model_copy(update={"total_steps": steps})


def tiny_state(config: RunConfig, plan: RunPlan) -> TrainState:
    pair = build_pair(
        config.model,
        plan,
        channels=config.data.channels,
        restoration=config.objective.restoration_weight > 0,
        seed=config.runtime.seed,
    )
    return new_state(pair, config, plan)


def tiny_batches(config: RunConfig, plan: RunPlan, start_step: int = 0) -> Iterator[Crops]:
    """The parts of every step from `start_step` on; a part is a function of its step and position."""
    size, views, channels = plan.batch_size_per_pass, config.views, config.data.channels
    for step in range(start_step, plan.total_steps):
        for position in range(config.train.accumulate):
            draws = generator("tiny", step, position)

            def pixels(crops: int, side: tuple[int, int], draws: torch.Generator = draws) -> torch.Tensor:
                return torch.randint(256, (crops, size, channels, *side), generator=draws, dtype=torch.uint8)

            yield Crops(
                pixels(views.global_crops, plan.global_size),
                pixels(views.local_crops, plan.local_size),
                torch.arange(size) + size * position + plan.batch_size * step,
            )
