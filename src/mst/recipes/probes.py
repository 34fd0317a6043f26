"""Probes of frozen features in the settings of published tables."""

from __future__ import annotations

from mst.recipes.downstream import TaskRecipe

LINEAR = TaskRecipe(
    name="linear-in1k",
    summary="DINO's linear protocol: augmented crops, 100 epochs, batch 1024, last 4 blocks",
    paper_row="MST, ImageNet-1k, 300 epochs: DeiT-S 76.9 top-1",
    command="mst evaluate linear --recipe linear-in1k --backbone RUN --data imagenet",
    hardware="one GPU; a pass of the backbone per epoch",
    time="not measured yet",
    expected="not measured yet",
    note="Compare `top1_best_on_val` with published numbers; a Swin uses the pooled feature: --blocks 1.",
    task="evaluate linear",
    options={"mode": "augmented", "epochs": 100, "batch-size": 1024, "momentum": 0.9, "blocks": 4},
)

RECIPES = (LINEAR,)
