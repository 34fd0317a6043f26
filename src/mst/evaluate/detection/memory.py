"""Whether the first step of a detector's training fits into memory: known before it starts, said in one line.

What depends on the objects (how many proposals there are, and which of them overlap) is taken as in an image that is
full of them; at the published sizes that is a tenth of all. Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from mst.engine.fitting import MicrobatchSize, check_counted
from mst.engine.footprint import training_bytes
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.common.features import device_of
from mst.evaluate.detection.training import TrainingSettings, detector_optimizer
from mst.model.backbone import BackboneSpec
from mst.model.bounds import most_of_scores, most_of_tokens
from mst.parallel.shares import own_share

REGIONS, MASKED = 512, 64
"""Proposals of an image that torchvision samples for the box head, and half of those that may get a mask."""
BOX_CELLS, MASK_CELLS = 7, 14
"""Cells per side of what the heads see of a proposal."""
DIVISOR = 32
"""Images are padded to multiples of this."""
NUMBERS_A_CELL, NUMBERS_A_PIXEL = 24, 3
"""Most numbers that the mask head keeps of each channel of a cell, and the pyramid of each channel of a pixel."""


def check_fits(detector: MaskRCNN, images: Sequence[CocoImage], settings: TrainingSettings) -> None:
    """Refuse a training whose first step cannot fit into the memory of its device; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which option to change to what.
    """
    size = padded_size(detector, images)
    asked = MicrobatchSize(
        -(-settings.batch_size // (settings.accumulate * own_share().size)),
        settings.batch_size,
        settings.accumulate,
        device_of(detector),
        smaller="smaller images (--short-sides, --long-side)",
        network="a smaller detector or network (--channels, --backbone)",
    )
    counted = partial(counted_bytes, detector, size, settings)
    check_counted(asked, counted, most=most_bytes(detector, size, asked.images))


def padded_size(detector: MaskRCNN, images: Sequence[CocoImage]) -> tuple[int, int]:
    """Return (H, W) that holds every training image at its largest, as batches are padded."""
    short, long = max(detector.transform.min_size), detector.transform.max_size
    sides = [0, 0]
    for height, width in {image.size for image in images}:
        scale = min(short / min(height, width), long / max(height, width))
        sides = [max(sides[0], int(height * scale)), max(sides[1], int(width * scale))]
    return -(-sides[0] // DIVISOR) * DIVISOR, -(-sides[1] // DIVISOR) * DIVISOR


def most_bytes(detector: MaskRCNN, size: tuple[int, int], images: int) -> int:
    """Return bytes that a step takes at most, from the sizes of network, heads and images alone."""
    spec, pixels, channels = _spec(detector), size[0] * size[1], int(detector.backbone.out_channels)
    tokens = pixels // spec.patch_size**2 + 1
    fixed = 24 * sum(int(parameter.numel()) for parameter in detector.parameters()) + 2**28
    of_backbone = most_of_tokens(spec, kept=tokens, seen=4 * tokens) + most_of_scores(spec, tokens)
    of_boxes = REGIONS * (4 * channels * BOX_CELLS**2 + 8 * int(detector.roi_heads.box_predictor.cls_score.in_features))
    of_masks = MASKED * NUMBERS_A_CELL * channels * MASK_CELLS**2
    of_pyramid = pixels * (6 * spec.channels + NUMBERS_A_PIXEL * channels)
    return round(fixed + images * (of_backbone + 4 * (of_boxes + of_masks + of_pyramid)))


def counted_bytes(detector: MaskRCNN, size: tuple[int, int], settings: TrainingSettings, images: int, most: int) -> int:
    """Return the memory of a step whose microbatches have so many images.

    Raises:
        TooManyBytes: more than `most`.
    """
    device, shape = device_of(detector), (_spec(detector).channels, *size)

    def loss(like: Any) -> Tensor:
        levels: dict[str, Tensor] = like.backbone(torch.zeros(images, *shape, device=device))
        scores, deltas = like.rpn.head(list(levels.values()))
        heads, channels = like.roi_heads, like.backbone.out_channels
        found = [*scores, *deltas, *heads.box_predictor(heads.box_head(seen(REGIONS, channels, BOX_CELLS)))]
        if heads.mask_head is not None:
            found.append(heads.mask_predictor(heads.mask_head(seen(MASKED, channels, MASK_CELLS))))
        return torch.stack([part.mean() for part in (*levels.values(), *found)]).sum()

    def seen(regions: int, channels: int, cells: int) -> Tensor:
        return torch.zeros(images * regions, channels, cells, cells, device=device, requires_grad=True)

    def optimizer(like: nn.Module) -> torch.optim.Optimizer:
        return detector_optimizer(like, settings)

    return training_bytes(
        detector,
        optimizer,
        loss,
        device=device,
        dtype=torch.float32,
        microbatches=settings.accumulate,
        most=most,
    )


def _spec(detector: MaskRCNN) -> BackboneSpec:
    spec: BackboneSpec = detector.backbone.backbone.spec
    return spec
