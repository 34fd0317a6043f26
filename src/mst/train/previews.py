"""Pictures of what the method does: image, the teacher's importance, what the student sees, what it restores.

Letters: n images, C channels, H W pixels, N = h*w patch tokens.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from mst.model.pair import TeacherStudent
from mst.model.tokens import Tokens
from mst.objective.masking import student_mask
from mst.objective.records import ObjectiveValues
from mst.objective.restoration import pixel_mask
from mst.runtime.storage.files import write_atomic

HIDDEN_GREY = 0.5
SMALLEST_TILE = 96  # pixels; smaller crops are enlarged


@torch.no_grad()
def preview(
    pair: TeacherStudent,
    images: Tensor,
    values: ObjectiveValues,
    generator: torch.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Draw one row per image: image, importance, masked input, reconstruction (the last two where there are such).

    Args:
        pair: left as it was.
        images: normalised global crops [n, C, H, W] on the pair's device.
        values: how to mask.
        generator: draws the mask.
        mean: of the normalisation, per channel.
        std: of the normalisation, per channel.
        dtype: compute type of the networks.

    Returns:
        picture uint8 [3, height, width], on the CPU.
    """
    pair.eval()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        tokens: Tokens = pair.teacher.backbone.tokens(images)
        mask = student_mask(tokens, values, generator)  # [n, N] or None
        seen = pair.student.backbone.tokens(images, mask, importance=False)
        restored = None if pair.decoder is None else pair.decoder(seen.patches, seen.grid)  # [n, C, H, W]
    pair.train()
    shape = (-1, 1, 1)
    scale, offset = (torch.tensor(numbers, device=images.device).view(shape) for numbers in (std, mean))
    shown = as_rgb(images * scale + offset)  # [n, 3, H, W]
    columns = [shown, heat_map(tokens, images.shape[-2:])]
    if mask is not None:
        hidden = pixel_mask(mask, tokens.grid, images.shape[-2] // tokens.grid[0])  # [n, 1, H, W]
        columns.append(shown.masked_fill(hidden, HIDDEN_GREY))
    if restored is not None:
        columns.append(as_rgb(restored.float() * scale + offset))
    return tiles(columns)


def save_preview(path: Path, picture: Tensor) -> None:
    """Write a uint8 picture [3, height, width] as PNG.

    Raises:
        RunFailure: the disk refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def as_rgb(images: Tensor) -> Tensor:
    """Return images in [0, 1] as [n, 3, H, W]: three channels as they are, any other number as their grey mean."""
    images = images.float().clamp(0, 1)
    return images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def heat_map(tokens: Tokens, size: Sequence[int]) -> Tensor:
    """Draw importance [n, N] as [n, 3, H, W]: black over red and yellow to white, least to most of each image."""
    if tokens.importance is None:
        raise ValueError("tokens without importance")
    low, high = tokens.importance.aminmax(dim=1, keepdim=True)  # [n, 1]
    level = (tokens.importance - low) / (high - low).clamp(min=1e-12)  # [n, N]
    level = level.view(-1, 1, *tokens.grid)  # [n, 1, h, w]
    heat = torch.cat([(3 * level - band).clamp(0, 1) for band in range(3)], dim=1)  # [n, 3, h, w]
    return F.interpolate(heat, size=tuple(size), mode="nearest")


def tiles(columns: Sequence[Tensor]) -> Tensor:
    """Lay out columns of images [n, 3, H, W] in [0, 1], one row per image: uint8 [3, height, width] on the CPU."""
    cells = torch.stack(list(columns), dim=1).flatten(0, 1)  # [n * columns, 3, H, W]
    factor = -(-SMALLEST_TILE // cells.shape[-2])
    cells = cells.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    grid: Tensor = make_grid(cells, nrow=len(columns), padding=2, pad_value=1.0)
    return (grid * 255).round().to(torch.uint8).cpu()
