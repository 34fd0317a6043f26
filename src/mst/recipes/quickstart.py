"""The embedded data in minutes on two CPU cores: designed for optimizer steps per minute."""

from __future__ import annotations

from mst.config.schema import (
    CheckpointConfig,
    MonitorConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
    ViewsConfig,
)
from mst.recipes.record import Recipe
from mst.recipes.small import small_vit

QUICKSTART = Recipe(
    name="quickstart",
    summary="embedded synthetic scenes, 48 px, a small ViT, minutes on two CPU cores",
    paper_row="none",
    command="mst quickstart --out runs/quickstart",
    hardware="two CPU cores",
    time="5.2 minutes with both cores free (runs/quickstart-small-batches)",
    expected="untrained -> trained: k-NN 32.4 -> 97.2, linear 54.1 -> 98.0, mIoU 37.4 -> 60.5",
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
        # 36 patch tokens and three narrow blocks: about a hundred images a second on one AVX-512 core.
        model=small_vit(patch_size=8, depth=3),
        # Few steps: sharp targets from a fast teacher, and the center of the last step, as own-images has it.
        objective=ObjectiveConfig(
            teacher_temp=0.03, teacher_momentum=0.97, teacher_momentum_end=0.99, center_momentum=0.0
        ),
        # Small batches: more steps teach this network more than more images do (runs/README.md). One thread: so little
        # work does not gain from a second one, which loads the images instead.
        optimizer=OptimizerConfig(lr=6e-4),
        schedule=ScheduleConfig(warmup_epochs=0.07),
        train=TrainConfig(batch_size=8, epochs=3.6),
        runtime=RuntimeConfig(threads=1),
        checkpoint=CheckpointConfig(every_steps=500, keep=1),
        monitor=MonitorConfig(every_steps=20, knn_every_steps=750, knn_train_limit=2000, tensorboard=False),
    ),
)

RECIPES = (QUICKSTART,)
