"""Restoration of the whole global crop from the student's patch tokens, and how well it works.

Source: MST (Li et al. 2021), section 3.3: a decoder restores the image, not only the masked patches. The distance, L1
on normalised pixels, is our choice (docs/deviations.md). PSNR is the usual 10 log10(1 / mean squared error).

Letters: B images, C channels, H W pixels, N = h*w patch tokens, P pixels per token side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mst.errors import UsageError


def restoration_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference over images, channels and pixels, float32 scalar.

    Args:
        reconstruction: [B, C, H, W], any float type.
        target: the crop as the student got it, before masking, normalised [B, C, H, W].
    """
    return _difference(reconstruction, target).abs().mean()


def pixel_mask(mask: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Return the pixels of the masked tokens [B, 1, H, W], bool, for a token mask [B, N] on `grid` (h, w)."""
    cells = mask.view(-1, 1, *grid)  # [B,1,h,w]
    return cells.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)


def mean_absolute_error(reconstruction: Tensor, target: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Return the mean absolute difference in normalised units over the chosen pixels; NaN where none is chosen.

    Args:
        reconstruction: [B, C, H, W].
        target: normalised [B, C, H, W].
        pixels: which to count [B, 1, H, W], bool; None = all.
    """
    return _mean(_difference(reconstruction, target).abs(), pixels)


def psnr(reconstruction: Tensor, target: Tensor, pixels: Tensor | None, std: Sequence[float]) -> Tensor:
    """Return the peak signal-to-noise ratio in dB over the chosen pixels of the batch; NaN where none is chosen.

    The mean squared error is taken over all chosen pixels of all images together, in un-normalised pixels, whose range
    is [0, 1].

    Args:
        reconstruction: [B, C, H, W].
        target: normalised [B, C, H, W].
        pixels: which to count [B, 1, H, W], bool; None = all.
        std: per-channel standard deviation that the normalisation divided by, C numbers.

    Raises:
        UsageError: `std` has not one number per channel.
    """
    error, count = squared_error(reconstruction, target, pixels, std)
    return decibels(error, count)


def squared_error(
    reconstruction: Tensor, target: Tensor, pixels: Tensor | None, std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the sum of squared errors over the chosen pixels and all channels, and how many numbers it is of.

    Both add up over parts of a batch. Arguments and errors as of `psnr`.
    """
    if len(std) != target.shape[1]:
        raise UsageError(f"std has {len(std)} numbers for images of {target.shape[1]} channels: give one per channel")
    scale = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1).to(target.device, non_blocking=True)  # [C,1,1]
    squares = (_difference(reconstruction, target) * scale).square()
    if pixels is None:
        return squares.sum(), squares.new_tensor(float(squares.numel()))
    return (squares * pixels).sum(), pixels.sum().to(squares.dtype) * squares.shape[1]


def mean_colour_fill(images: Tensor, hidden: Tensor) -> Tensor:
    """Return what knows least of the hidden pixels: every pixel of an image [B, C, 1, 1] is its visible pixels' mean.

    Where nothing is visible it is 0, the mean of all images.

    Args:
        images: normalised [B, C, H, W].
        hidden: which pixels are not visible [B, 1, H, W], bool.
    """
    visible = (~hidden).to(images.dtype)  # [B,1,H,W]
    count = visible.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
    return (images * visible).sum(dim=(2, 3), keepdim=True) / count


def decibels(error: Tensor, count: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of what `squared_error` returned, added up; NaN where count is 0."""
    return (error / count).log10() * -10.0


def _difference(reconstruction: Tensor, target: Tensor) -> Tensor:
    wide = torch.promote_types(reconstruction.dtype, torch.float32)
    return reconstruction.to(wide) - target.to(wide)


def _mean(values: Tensor, pixels: Tensor | None) -> Tensor:
    """Average `values` [B,C,H,W] over the chosen pixels and all channels."""
    if pixels is None:
        return values.mean()
    return (values * pixels).sum() / (pixels.sum() * values.shape[1])
