"""What the monitors want to know of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mst.objective.dino import marginal_entropy, mean_entropy
from mst.objective.records import StepOutput
from mst.objective.restoration import pixel_mask, psnr


@torch.no_grad()
def step_statistics(output: StepOutput, images: Tensor, std: Sequence[float] | None) -> dict[str, Tensor]:
    """Return scalars for the monitors, by their names in metrics.jsonl.

    `teacher_entropy` and `marginal_entropy` (nats), `masked_share` (of all tokens of all global crops), and, with a
    reconstruction and `std`, `psnr_masked` and `psnr_visible` (dB, NaN where there is no such pixel).
    """
    statistics = {
        "teacher_entropy": mean_entropy(output.teacher_probs),
        "marginal_entropy": marginal_entropy(output.teacher_probs),
        "masked_share": torch.zeros(()) if output.mask is None else output.mask.float().mean(),
    }
    if output.reconstruction is None or std is None:
        return statistics
    grid, mask = output.teacher.grid, output.mask
    if mask is None:
        mask = torch.zeros(len(images), math.prod(grid), dtype=torch.bool, device=images.device)
    hidden = pixel_mask(mask, grid, patch_size=images.shape[-2] // grid[0])  # [G*B,1,H,W]
    statistics["psnr_masked"] = psnr(output.reconstruction, images, hidden, std)
    statistics["psnr_visible"] = psnr(output.reconstruction, images, ~hidden, std)
    return statistics
