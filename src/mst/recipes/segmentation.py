"""Semantic segmentation on Cityscapes, in mmsegmentation's settings of SETR."""

from __future__ import annotations

from mst.recipes.downstream import TaskRecipe

SETR_CITYSCAPES = TaskRecipe(
    name="setr-deit-small-cityscapes",
    summary="SETR-PUP on a DeiT-S, Cityscapes, 768 x 768 crops, 80,000 steps of 8",
    paper_row="MST, ImageNet-1k, 100 epochs: DeiT-S with SETR 74.04 mIoU, 82.35 mAcc",
    command=(
        "mst evaluate segmentation --recipe setr-deit-small-cityscapes --backbone RUN --data cityscapes "
        "--checkpoints DIR --out DIR"
    ),
    hardware="one GPU of 80 GB; on less, --accumulate 2 or 4 (with other batch statistics)",
    time="not measured yet",
    expected="not measured yet",
    note=(
        "mmsegmentation's setr_vit-l_pup_8xb1-80k_cityscapes-768x768: SGD, rate 0.01 for the backbone and 0.1 for the "
        "head, poly to 1e-4, no weight decay, windows every 512 px. The abstract of the paper gives the numbers only."
    ),
    task="evaluate segmentation",
    options={
        "head": "setr-pup",
        "channels": 256,
        "train-backbone": True,
        "size": (768, 768),
        "stride": (512, 512),
        "steps": 80_000,
        "batch-size": 8,
        "optimizer": "sgd",
        "lr": 0.1,
        "backbone-scale": 0.1,
        "min-lr": 1e-4,
        "schedule": "poly",
        "weight-decay": 0.0,
        "clip-norm": None,
        "loss-stride": 1,
        "scales": (0.5, 2.0),
        "max-class-share": 0.75,
    },
)

RECIPES = (SETR_CITYSCAPES,)
