"""Imagenette at 128 px: ten ImageNet classes, for one small GPU or a patient CPU."""

from __future__ import annotations

from mst.config.load import override
from mst.config.schema import ModelConfig, RunConfig, TrainConfig, ViewsConfig
from mst.recipes.record import Recipe, named

CONFIG = RunConfig(
    views=ViewsConfig(global_size=128, local_size=48),
    model=ModelConfig(backbone="deit_small_patch16_224"),
    train=TrainConfig(batch_size=128, epochs=200),
)

MST = Recipe(
    name="vit-small-imagenette128",
    summary="Imagenette, 128 px, ViT-S/16, 2x128 + 6x48 crops, one GPU",
    paper_row="none: the paper has no Imagenette",
    command="mst pretrain vit-small-imagenette128 --data.train imagenette128/train --out runs/vit-small-imagenette128",
    hardware="one GPU with 8 GB or more; a CPU runs a shorter --train.epochs",
    time="not measured yet",
    expected="not measured yet",
    note="--monitor.knn-data imagenette128 shows the k-NN accuracy while training.",
    config=named(CONFIG, "vit-small-imagenette128"),
)

SWIN = Recipe(
    name="swin-tiny-imagenette128",
    summary="Imagenette, 128 px, Swin-T, 2x128 + 6x64 crops, one GPU",
    paper_row="none: the paper has no Imagenette",
    command="mst pretrain swin-tiny-imagenette128 --data.train imagenette128/train --out runs/swin-tiny-imagenette128",
    hardware=MST.hardware,
    time="not measured yet",
    expected="not measured yet",
    note="Crops are multiples of Swin's 32 px tokens, so the local ones are 64 px.",
    config=named(
        override(CONFIG, {"model.backbone": "swin_tiny_patch4_window7_224", "views.local_size": 64}),
        "swin-tiny-imagenette128",
    ),
)

RECIPES = (MST, SWIN)
