"""CIFAR-10 (32 px) on two CPU cores: shows within an hour that the method learns, and what MST adds to DINO."""

from __future__ import annotations

from mst.config.schema import (
    ModelConfig,
    MonitorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    ViewsConfig,
)
from mst.recipes.record import Recipe, named, without_mst

# Every tuned number of this family is here; the two recipes below only differ in the objective.
CONFIG = RunConfig(
    views=ViewsConfig(
        global_size=32,
        local_size=16,
        local_crops=4,
        blur=(0.5, 0.1, 0.0),  # 32 px images have little detail to blur away
        mean=(0.491, 0.482, 0.447),
        std=(0.247, 0.243, 0.262),
    ),
    model=ModelConfig(
        backbone="vit_tiny_patch16_224",
        patch_size=4,
        embed_dim=192,
        depth=4,
        num_heads=3,
        drop_path=0.0,
        prototypes=1024,
        head_hidden=512,
        head_bottleneck=128,
    ),
    objective=ObjectiveConfig(),
    optimizer=OptimizerConfig(base_lr=2e-3),
    train=TrainConfig(batch_size=128, epochs=10),
    monitor=MonitorConfig(knn_every_steps=200),
)

MST = Recipe(
    name="vit-tiny-cifar10",
    summary="CIFAR-10, 32 px, patch 4, 2x32 + 4x16 crops, two CPU cores",
    paper_row="none: the paper has no CIFAR-10",
    command="mst pretrain vit-tiny-cifar10 --data.train cifar10/train --out runs/vit-tiny-cifar10",
    hardware="two CPU cores",
    time="not measured yet",
    expected="not measured yet",
    note="--monitor.knn-data cifar10 shows the k-NN accuracy while training.",
    config=named(CONFIG, "vit-tiny-cifar10"),
)

DINO = Recipe(
    name="vit-tiny-cifar10-dino",
    summary="the same without masking and restoration (= DINO), on the same budget",
    paper_row="none",
    command="mst pretrain vit-tiny-cifar10-dino --data.train cifar10/train --out runs/vit-tiny-cifar10-dino",
    hardware=MST.hardware,
    time="not measured yet",
    expected="not measured yet",
    note="The comparison for vit-tiny-cifar10.",
    config=named(without_mst(CONFIG), "vit-tiny-cifar10-dino"),
)

RECIPES = (MST, DINO)
