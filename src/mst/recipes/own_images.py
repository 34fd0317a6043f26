"""Your own unlabelled photographs on one GPU: a moderate batch, everything else derived from how many there are."""

from __future__ import annotations

from mst.config.schema import DataConfig, RunConfig, TrainConfig
from mst.recipes.record import Recipe

OWN_IMAGES = Recipe(
    name="own-images",
    summary="any folder of photographs, 224 px, DeiT-S/16, one GPU",
    paper_row="none",
    command="mst pretrain own-images --data.train PATH --out runs/mine",
    hardware="one GPU with 16 GB or more",
    time="`mst plan own-images --data.train PATH` estimates it",
    expected="depends on the images",
    note="Smaller GPU: --train.accumulate 2 or 4. Small pictures: --views.global-size 96 --views.local-size 48.",
    config=RunConfig(recipe="own-images", data=DataConfig(held_out=256), train=TrainConfig(batch_size=128, epochs=100)),
)

RECIPES = (OWN_IMAGES,)
