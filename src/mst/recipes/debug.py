"""A run of seconds on any machine, to see that everything works; it learns nothing."""

from __future__ import annotations

from mst.config.schema import (
    CheckpointConfig,
    ModelConfig,
    MonitorConfig,
    RunConfig,
    TrainConfig,
    ViewsConfig,
)
from mst.recipes.record import Recipe

DEBUG = Recipe(
    name="debug",
    summary="seconds on one CPU core: does everything work with my images?",
    paper_row="none",
    command="mst pretrain debug --data.train PATH --out runs/debug",
    hardware="any",
    time="seconds",
    expected="none: the network is far too small and the run too short to learn",
    note="8 images are enough.",
    config=RunConfig(
        recipe="debug",
        views=ViewsConfig(global_size=32, local_size=16, local_crops=2),
        model=ModelConfig(
            backbone="vit_tiny_patch16_224",
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
            prototypes=64,
            head_hidden=64,
            head_bottleneck=32,
        ),
        train=TrainConfig(batch_size=8, epochs=2),
        checkpoint=CheckpointConfig(every_steps=10),
        monitor=MonitorConfig(every_steps=1),
    ),
)

RECIPES = (DEBUG,)
