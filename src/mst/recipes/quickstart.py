"""The embedded data in minutes on two CPU cores: designed for optimizer steps per minute."""

from __future__ import annotations

from mst.config.schema import (
    CheckpointConfig,
    ModelConfig,
    MonitorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    ViewsConfig,
)
from mst.recipes.record import Recipe

QUICKSTART = Recipe(
    name="quickstart",
    summary="embedded synthetic scenes, 48 px, a small ViT, minutes on two CPU cores",
    paper_row="none",
    command="mst quickstart --out runs/quickstart",
    hardware="two CPU cores",
    time="3.2 minutes with both cores free (runs/quickstart-two-cores)",
    expected="untrained -> trained: k-NN 38.2 -> 57.5, linear 42.5 -> 62.3, mIoU 10.3 -> 25.5",
    note="`mst quickstart` makes the scenes, runs this and evaluates it.",
    config=RunConfig(
        recipe="quickstart",
        # What the views vary most is what the network learns first to ignore: light and contrast vary a lot from scene
        # to scene, hue hardly does.
        views=ViewsConfig(
            global_size=48,
            local_size=24,
            local_crops=4,
            local_scale=(0.2, 0.5),
            jitter=1.0,
            brightness=0.6,
            contrast=0.6,
            hue=0.05,
            grey=0.0,
            blur=(0.5, 0.1, 0.0),
            solarize=0.0,
        ),
        # 36 patch tokens and three narrow blocks: hundreds of images per second on one core.
        model=ModelConfig(
            backbone="vit_tiny_patch16_224",
            patch_size=8,
            embed_dim=128,
            depth=3,
            num_heads=4,
            drop_path=0.0,
            prototypes=1024,
            head_hidden=512,
            head_bottleneck=128,
            head_norm="batch",
        ),
        # A few hundred steps: sharp targets from a fast teacher.
        objective=ObjectiveConfig(teacher_temp=0.03, teacher_momentum=0.98, teacher_momentum_end=0.998),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_epochs=0.6),
        train=TrainConfig(batch_size=64, epochs=8),
        checkpoint=CheckpointConfig(every_steps=100, keep=1),
        monitor=MonitorConfig(every_steps=10, knn_every_steps=100, knn_train_limit=2000, tensorboard=False),
    ),
)

RECIPES = (QUICKSTART,)
