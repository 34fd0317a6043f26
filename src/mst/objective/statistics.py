"""What the monitors want to know of a step: sums that add up over parts of a batch, and the numbers made of them.

Entropies of means and decibels are no means over parts, so they are taken of the sums over the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mst.objective.dino import entropy
from mst.objective.records import StepOutput
from mst.objective.restoration import decibels, mean_colour_fill, pixel_mask, squared_error

Sums = dict[str, Tensor]


@torch.no_grad()
def statistic_sums(output: StepOutput, images: Tensor, std: Sequence[float] | None) -> Sums:
    """Return the sums of some images; those of other images of the batch can be added to them.

    Args:
        output: of `mst_losses`, with the reconstruction kept.
        images: global crops, normalised [G*B, C, H, W].
        std: what they were normalised with, per channel; None = no PSNR.
    """
    probs = output.teacher_probs.flatten(0, 1)  # [G*B,K]
    one = torch.ones((), device=images.device)
    sums = {
        "crops": one * len(images),
        "entropy": entropy(probs).sum(),
        "probs": probs.sum(dim=0),  # [K]
        "tokens": one * (len(images) * math.prod(output.teacher.grid)),
        "masked": one * 0.0 if output.mask is None else output.mask.sum().float(),
    }
    if output.reconstruction is None or std is None:
        return sums
    grid, mask = output.teacher.grid, output.mask
    if mask is None:
        mask = torch.zeros(len(images), math.prod(grid), dtype=torch.bool, device=images.device)
    hidden = pixel_mask(mask, grid, patch_size=images.shape[-2] // grid[0])  # [G*B,1,H,W]
    for name, pixels in (("masked", hidden), ("visible", ~hidden)):
        error, count = squared_error(output.reconstruction, images, pixels, std)
        sums |= {f"error_{name}": error, f"count_{name}": count}
    fill = mean_colour_fill(images, hidden)
    sums["error_fill"], sums["count_fill"] = squared_error(fill, images, hidden, std)
    return sums


def statistics_of(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the numbers of a batch by their names in metrics.jsonl.

    `teacher_entropy` and `marginal_entropy` (nats), `masked_share` (of all tokens of all global crops), and, where
    there was a reconstruction, `psnr_masked` and `psnr_visible` (dB, NaN where there is no such pixel), and
    `psnr_fill`: of hidden pixels if each image's were filled with the mean colour of its visible ones.
    """
    values = {
        "teacher_entropy": sums["entropy"] / sums["crops"],
        "marginal_entropy": entropy(sums["probs"] / sums["crops"]),
        "masked_share": sums["masked"] / sums["tokens"],
    }
    for name in ("masked", "visible", "fill"):
        if f"error_{name}" in sums:
            values[f"psnr_{name}"] = decibels(sums[f"error_{name}"], sums[f"count_{name}"])
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
