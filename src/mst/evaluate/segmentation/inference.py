"""Classes of whole images: the image is resized to the network's size, or seen in windows whose logits are averaged.

Source: sliding windows as SETR and mmsegmentation test on Cityscapes (Zheng et al. 2021, section 4.1): every window
has the training size, the last one of a row or column ends at the border, logits are averaged where windows overlap.
Letters: B images, C channels, K classes, H W pixels of an image, h w of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.errors import UsageError
from mst.evaluate.common.features import device_of
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.protocol import ImageTransform, resized
from mst.evaluate.segmentation.heads import enlarge
from mst.model.backbone import check_image_size
from mst.runtime.device import Precision, select_precision

WINDOWS = 4
"""Windows that go through the network together."""


@dataclass(frozen=True)
class View:
    """How an image becomes the segmenter's input.

    Attributes:
        size: (H, W) of the input.
        stride: None = the image is resized to `size` as a whole, aspect ratio not kept. Else windows of `size` at
            these distances (vertical, horizontal) over the image at its own resolution.
        mean: per channel, in [0, 1].
        std: per channel.
    """

    size: tuple[int, int]
    stride: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self, patch_size: int) -> None:
        """Refuse a size or windows that do not go with the backbone.

        Raises:
            UsageError: the size is no multiple of the patch, or windows would leave gaps.
        """
        check_image_size(self.size, patch_size, "--size")
        if self.stride is not None and not all(
            0 < step <= side for step, side in zip(self.stride, self.size, strict=True)
        ):
            raise UsageError(
                f"--stride {self.stride[0]} {self.stride[1]}: must be between 1 and the window, "
                f"{self.size[0]} {self.size[1]}"
            )

    def normalise(self, image: Tensor) -> Tensor:
        """Return float32 [C, H, W] for uint8 [C, H, W]."""
        return ImageTransform(self.size, self.mean, self.std).normalise(image)

    def base_size(self, image: Tensor) -> tuple[int, int]:
        """Return the (H, W) that this image is resized to before crops or windows are taken."""
        return self.size if self.stride is None else (image.shape[-2], image.shape[-1])


def predict_mask(
    segmenter: nn.Module,
    image: Tensor,
    view: View,
    precision: Precision,
    name: str = "an image",
) -> Tensor:
    """Return the most probable class of each pixel, int64 [H, W] on the CPU.

    Args:
        segmenter: normalised images [B, C, H, W] -> logits [B, K, h, w]; in evaluation mode.
        image: uint8 [C, H, W].
        view: size, windows, normalisation.
        precision: compute type of the network.
        name: of the image, for the message.

    Raises:
        RunFailure: a score is not finite.
    """
    device = device_of(segmenter)
    compute, _ = select_precision(precision, device)

    def forward(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute == torch.bfloat16):
            logits: Tensor = segmenter(pixels)
        return logits.float()

    pixels = view.normalise(resized(image, view.base_size(image)))[None].to(device)  # [1,C,H,W]
    logits = forward(pixels) if view.stride is None else sliding_logits(forward, pixels, view.size, view.stride)
    check_finite(logits, segmenter, [name], "class scores")
    return enlarge(logits, image.shape[-2:]).argmax(1)[0].cpu()


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin on a side of `length` >= `window`: every `stride`, the last one ends at the border."""
    return [*range(0, length - window, stride), length - window]


def sliding_logits(
    forward: Callable[[Tensor], Tensor], image: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Return logits [1, K, H, W], averaged over all windows that see a pixel.

    Args:
        forward: normalised windows [B, C, h, w] -> logits [B, K, h', w'], enlarged here to h, w.
        image: normalised [1, C, H, W]; one that is smaller than a window is padded with zeros, the mean colour.
        window: (h, w).
        stride: distances of the windows, vertical and horizontal.
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    rows, columns = (
        window_starts(length, side, step) for length, side, step in zip(image.shape[-2:], window, stride, strict=True)
    )
    places = list(itertools.product(rows, columns))
    total, seen = torch.zeros(()), image.new_zeros(image.shape[-2:])  # [H,W]
    for first in range(0, len(places), WINDOWS):
        chosen = places[first : first + WINDOWS]
        crops = torch.cat([image[..., y : y + window[0], x : x + window[1]] for y, x in chosen])  # [B,C,h,w]
        logits = enlarge(forward(crops), window)  # [B,K,h,w]
        if first == 0:
            total = logits.new_zeros(1, logits.shape[1], *image.shape[-2:])  # [1,K,H,W]
        for (y, x), part in zip(chosen, logits, strict=True):
            total[0, :, y : y + window[0], x : x + window[1]] += part
            seen[y : y + window[0], x : x + window[1]] += 1
    return (total / seen)[..., :height, :width]
