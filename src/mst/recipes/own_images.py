"""Your own unlabelled images: network, crops, rates and length are chosen for the images, the device and the time."""

from __future__ import annotations

from mst.config.schema import Choice, DataConfig, MonitorConfig, RunConfig, TrainConfig
from mst.recipes.record import Recipe

OWN_IMAGES = Recipe(
    name="own-images",
    summary="any folder of images: everything chosen for them, this machine and --minutes",
    paper_row="none",
    command="mst pretrain own-images --data.train PATH --minutes 15 --out runs/mine",
    hardware="two CPU cores or a GPU: it chooses what fits",
    time="as long as --minutes says; 15 minutes on a CPU and 4 hours on a GPU unless it is given",
    expected="depends on the images",
    note="`mst plan own-images --data.train PATH` shows each choice, why, and the option that sets another value.",
    # Without images (mst bench): what a GPU would be given.
    config=RunConfig(
        recipe="own-images",
        data=DataConfig(held_out=256),
        train=TrainConfig(batch_size=128, epochs=100),
        choice=Choice(),
        monitor=MonitorConfig(dynamics="repair", knn_exclude=True),
    ),
)

RECIPES = (OWN_IMAGES,)
