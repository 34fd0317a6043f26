"""The paper's two backbones on ImageNet-1k (Li et al. 2021), 100 and 300 epochs, with the twins of its ablations."""

from __future__ import annotations

from dataclasses import dataclass

from mst.config.schema import ModelConfig, RunConfig, TrainConfig
from mst.recipes.record import Recipe, named
from mst.recipes.variants import DINO, TWINS, Variant

HARDWARE = "8 GPUs of 32 GB or more"
UNTESTED = "not measured yet"
UNKNOWN_ROW = "in the paper's set-up; this project does not know a number of it"


@dataclass(frozen=True)
class _Network:
    """A backbone of the paper: how recipes call it, how it is written, and what timm calls it."""

    name: str
    title: str
    timm: str


DEIT_SMALL = _Network("deit-small", "DeiT-S/16", "deit_small_patch16_224")
SWIN_TINY = _Network("swin-tiny", "Swin-T", "swin_tiny_patch4_window7_224")

PAPER_ROWS = {
    "deit-small-in1k-100ep": "mask ablation, linear probe: 73.7 top-1 (attention-guided)",
    "deit-small-in1k-100ep-dino": "mask ablation, linear probe: 73.1 top-1 (no mask)",
    "deit-small-in1k-100ep-random": "mask ablation, linear probe: 63.2 top-1 (random)",
    "deit-small-in1k-300ep": "linear probe: 76.9 top-1",
    "deit-small-in1k-300ep-dino": "linear probe: 75.9 top-1 (DINO, 300 epochs)",
}


def _recipe(network: _Network, epochs: int, variant: Variant | None = None) -> Recipe:
    """The schema's defaults are the paper's run on DeiT-S/16: 2x224 + 6x96 crops; the batch is 1024."""
    name = f"{network.name}-in1k-{epochs}ep" + (f"-{variant.name}" if variant else "")
    config = RunConfig(model=ModelConfig(backbone=network.timm), train=TrainConfig(batch_size=1024, epochs=epochs))
    return Recipe(
        name=name,
        summary=f"ImageNet-1k, {network.title}, 2x224 + 6x96 crops, {epochs} epochs"
        + (f", {variant.summary}" if variant else ""),
        paper_row=PAPER_ROWS.get(name, UNKNOWN_ROW),
        command=f"mst pretrain {name} --data.train imagenet/train --out runs/{name}",
        hardware=HARDWARE,
        time=UNTESTED,
        expected=UNTESTED,
        note="Fewer or smaller GPUs: raise --train.accumulate; `mst plan` estimates time and memory.",
        config=named(variant.apply(config) if variant else config, name),
    )


RECIPES = tuple(
    _recipe(network, epochs, variant)
    for network in (DEIT_SMALL, SWIN_TINY)
    for epochs, variants in ((100, (None, *TWINS)), (300, (None, DINO)))
    for variant in variants
)
