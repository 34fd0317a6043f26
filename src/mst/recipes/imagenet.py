"""DeiT-S on ImageNet-1k as in the paper (Li et al. 2021), for 100 and 300 epochs, each with its DINO twin."""

from __future__ import annotations

from mst.config.schema import RunConfig, TrainConfig
from mst.recipes.record import Recipe, named, without_mst

HARDWARE = "8 GPUs of 32 GB or more"
UNTESTED = "not measured yet"


def _config(epochs: float) -> RunConfig:
    """The schema's defaults are this run: DeiT-S/16, 2x224 + 6x96 crops, batch 1024."""
    return RunConfig(train=TrainConfig(batch_size=1024, epochs=epochs))


def _recipe(epochs: int, *, mst: bool, paper_row: str) -> Recipe:
    name = f"deit-small-in1k-{epochs}ep" + ("" if mst else "-dino")
    config = _config(epochs)
    return Recipe(
        name=name,
        summary=f"ImageNet-1k, DeiT-S/16, 2x224 + 6x96 crops, {epochs} epochs" + ("" if mst else ", as DINO"),
        paper_row=paper_row,
        command=f"mst pretrain {name} --data.train imagenet/train --out runs/{name}",
        hardware=HARDWARE,
        time=UNTESTED,
        expected=UNTESTED,
        note="Fewer or smaller GPUs: raise --train.accumulate; `mst plan` estimates time and memory.",
        config=named(config if mst else without_mst(config), name),
    )


RECIPES = (
    _recipe(100, mst=True, paper_row="mask ablation, linear probe: 73.7 top-1 (attention-guided)"),
    _recipe(100, mst=False, paper_row="mask ablation, linear probe: 73.1 top-1 (no mask)"),
    _recipe(300, mst=True, paper_row="linear probe: 76.9 top-1"),
    _recipe(300, mst=False, paper_row="linear probe: 75.9 top-1 (DINO, 300 epochs)"),
)
