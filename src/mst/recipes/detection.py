"""Mask R-CNN on COCO with the 1x schedule, for the two backbones of the paper.

Source: Swin's detection settings (Liu et al. 2021, section 4.2: AdamW 1e-4, weight decay 0.05, batch 16, short side
480 to 800, long side at most 1333) with MoBY's 1x schedule (Xie et al. 2021, section 4.2) for Swin-T; the same with
ViTDet's layer-wise decay of 0.7 (Li et al. 2022, appendix A.2) for DeiT-S; stochastic depth of 0.1 for both. Differs:
gradients are clipped to norm 1, as everywhere in this package; ViTDet trains longer, on 1024 px crops, with windows in
most blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from mst.recipes.downstream import TaskRecipe

ONE_X: Mapping[str, object] = {
    "epochs": 12,
    "batch-size": 16,
    "lr": 1e-4,
    "weight-decay": 0.05,
    "warmup-steps": 500,
    "clip-norm": 1.0,
    "drop-path": 0.1,
    "short-sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "long-side": 1333,
    "channels": 256,
    "head-dim": 1024,
    "anchor-size": 32,
}
"""12 epochs, the rate divided by ten after 8 and 11; the short side is drawn anew for each training image."""


def _recipe(name: str, network: str, paper_row: str, note: str, layer_decay: float) -> TaskRecipe:
    return TaskRecipe(
        name=name,
        summary=f"Mask R-CNN 1x on COCO from a {network}",
        paper_row=paper_row,
        command=f"mst evaluate detection --recipe {name} --backbone RUN --data coco --checkpoints DIR --save-model DIR",
        hardware="one GPU of 80 GB; on less, --accumulate 2, 4, 8 or 16 makes the same step of smaller parts",
        time="not measured yet",
        expected="not measured yet",
        note=note,
        task="evaluate detection",
        options={**ONE_X, "layer-decay": layer_decay},
    )


RECIPES = (
    _recipe(
        "maskrcnn-swin-tiny-coco",
        "Swin-T",
        "MST, 100 epochs of pre-training: 42.7 box AP, 38.8 mask AP; beside it (Xie et al. 2021) MoBY 43.6 and 39.6, "
        "supervised 43.7 and 39.8",
        "COCO's own folder layout: annotations/instances_train2017.json, train2017/, val2017/.",
        1.0,
    ),
    _recipe(
        "maskrcnn-deit-small-coco",
        "DeiT-S/16",
        "none: no published run has a simple feature pyramid on a DeiT-S with this schedule",
        "COCO's own folder layout, as for maskrcnn-swin-tiny-coco. Attention is global: 4,200 tokens at 800x1333.",
        0.7,
    ),
)
