"""Supervised training on ImageNet-1k from scratch: what MST's backbones are compared with.

Source: DeiT (Touvron et al. 2021, table 9) and Swin (Liu et al. 2021, appendix A2.1; clipping and last learning rate
as in its released configuration). 2.5e-4 for 256 images is their 5e-4 for 512. DeiT's repeated augmentation shows an
image three times in one batch, so three epochs pass over the images once; its gradients are not clipped, Swin's are.
Differs: the first steps warm up from a rate near 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from mst.recipes.downstream import TaskRecipe

SHARED: Mapping[str, object] = {
    "epochs": 300,
    "batch-size": 1024,
    "base-lr": 2.5e-4,
    "weight-decay": 0.05,
    "layer-decay": 1.0,
    "label-smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "randaugment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "size": (224, 224),
}
"""What the two have in common."""


def _recipe(name: str, title: str, timm: str, expected: str, options: Mapping[str, object]) -> TaskRecipe:
    return TaskRecipe(
        name=name,
        summary=f"supervised {title} on ImageNet-1k from scratch, 300 epochs",
        paper_row=expected,
        command=f"mst finetune {name} --data imagenet --out runs/{name}",
        hardware="one GPU of 80 GB; on less, --accumulate 2, 4 or 8 makes the same step of smaller parts",
        time="not measured yet",
        expected="not measured yet",
        note="What pre-trained backbones are compared with; `--backbone RUN` fine-tunes a run in the same settings.",
        task="finetune",
        options={"backbone": f"scratch:{timm}", **SHARED, **options},
    )


RECIPES = (
    _recipe(
        "deit-small-in1k-supervised",
        "DeiT-S/16",
        "deit_small_patch16_224",
        "DeiT-S, ImageNet-1k: 79.8 top-1 (Touvron et al. 2021)",
        {"warmup-epochs": 5.0, "drop-path": 0.1, "min-lr": 1e-5, "repeats": 3},
    ),
    _recipe(
        "swin-tiny-in1k-supervised",
        "Swin-T",
        "swin_tiny_patch4_window7_224",
        "Swin-T, ImageNet-1k: 81.3 top-1 (Liu et al. 2021)",
        {"warmup-epochs": 20.0, "drop-path": 0.2, "min-lr": 5e-6, "clip-norm": 5.0, "repeats": 1},
    ),
)
