"""Mask R-CNN on a feature pyramid: its targets from COCO annotations, and what it finds as detections.

Source: He et al. 2017 as torchvision implements it, with its defaults; only widths, image sizes and the smallest anchor
can be chosen. Letters: B images, C channels, H W pixels, M objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import resize_boxes

from mst.errors import DataError
from mst.evaluate.coco.masks import mask_of
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.detection.metrics import Detection, encode_mask
from mst.runtime.limits import check_numbers

LEVELS = 5
"""Four levels of the pyramid and the pooled one."""
POOLED = 7
"""Cells per side that torchvision's box head sees of an object."""
THINNEST = 0.01
"""Thinnest box in pixels that is a target: thinner ones may vanish by rounding when they are mirrored and resized."""


@dataclass(frozen=True)
class DetectorShape:
    """Sizes of the detector and its images.

    Attributes:
        short_sides: lengths for the short side of an image: drawn for each training image, the last for validation.
        long_side: limit of the long side; an image that would exceed it gets a shorter short side.
        channels: of the pyramid and the mask head.
        head_dim: width of the box head.
        anchor_size: pixels of the smallest anchor, doubled from level to level.
    """

    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    long_side: int = 1333
    channels: int = 256
    head_dim: int = 1024
    anchor_size: int = 32

    def __post_init__(self) -> None:
        check_numbers(self, "short_sides", "long_side", least=32)
        check_numbers(self, "channels", "head_dim", least=1)
        check_numbers(self, "anchor_size", least=1, most=self.long_side)


def build_detector(
    pyramid: nn.Module,
    num_classes: int,
    shape: DetectorShape,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    masks: bool = True,
) -> MaskRCNN:
    """Return torchvision's Mask R-CNN over a pyramid with `out_channels` and levels "0" to "3" and "pool".

    It takes images in [0, 1], and normalises, resizes and pads them (to multiples of 32) itself. Label 0 is the
    background. Weights are initialised by torchvision from the process's random state. Without `masks` there is no mask
    head, which makes it Faster R-CNN.
    """
    channels = shape.channels
    hidden = 256 if channels >= 256 else channels
    detector = MaskRCNN(
        pyramid,
        min_size=shape.short_sides,
        max_size=shape.long_side,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=AnchorGenerator(
            tuple((shape.anchor_size * 2**level,) for level in range(LEVELS)), ((0.5, 1.0, 2.0),) * LEVELS
        ),
        box_head=TwoMLPHead(channels * POOLED**2, shape.head_dim),
        box_predictor=FastRCNNPredictor(shape.head_dim, num_classes + 1),
        mask_head=MaskRCNNHeads(channels, (hidden,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(hidden, hidden, num_classes + 1),
    )
    if not masks:
        heads = detector.roi_heads
        heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
    return detector


def training_target(image: CocoImage) -> dict[str, Tensor]:
    """Return boxes [M, 4] inside the image, labels [M] from 1 on, and masks uint8 [M, H, W] if all have one; no crowds.

    The part of a box outside its image (up to 2 px) is cut off. A box of which nothing is left is no target.
    """
    height, width = image.size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes, labels, masks = [], [], []
    for found in image.objects:
        box = torch.minimum(torch.tensor(found.box).clamp(min=0), limits)
        if found.crowd or not bool((box[2:] - box[:2] >= THINNEST).all()):
            continue
        boxes.append(box)
        labels.append(found.label + 1)
        if found.segmentation is not None:
            masks.append(torch.from_numpy(mask_of(found.segmentation).copy()))
    target = {
        "boxes": torch.stack(boxes) if boxes else torch.zeros(0, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    if len(masks) < len(boxes):
        return target
    none = torch.zeros(0, height, width, dtype=torch.uint8)
    return {**target, "masks": torch.stack(masks).to(torch.uint8) if masks else none}


def flipped(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an image [C, H, W] and its target mirrored left to right."""
    boxes, width = target["boxes"], image.shape[-1]
    mirrored = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    masks = {"masks": target["masks"].flip(-1)} if "masks" in target else {}
    return image.flip(-1), {**target, "boxes": mirrored, **masks}


def check_proportions(image: CocoImage, shape: DetectorShape) -> None:
    """Refuse an image so narrow that its short side would vanish when the long side is reduced to its limit.

    Raises:
        DataError: naming it.
    """
    if min(image.size) * shape.long_side < max(image.size):
        raise DataError(
            f"{image.name}: {image.size[0]}x{image.size[1]} (H x W) is too narrow for --long-side {shape.long_side}"
        )


def find_objects(detector: Any, image: CocoImage, pixels: Tensor) -> list[Detection]:
    """Return what a detector in evaluation mode finds in one image; masks hold pixels of probability above one half.

    The numbers are those of `detector([pixels])`. Differs: masks are enlarged to the image one at a time; torchvision
    holds all of them, up to a hundred float images, at once.

    Args:
        detector: from `build_detector`.
        image: says which image it is; its annotations are not looked at.
        pixels: in [0, 1] [C, H, W], on the detector's device.
    """
    resized, _ = detector.transform([pixels])
    levels = detector.backbone(resized.tensors)
    proposals, _ = detector.rpn(resized, levels)
    found, _ = detector.roi_heads(levels, proposals, resized.image_sizes)
    parts = found[0]
    boxes = resize_boxes(parts["boxes"], list(resized.image_sizes[0]), list(image.size))  # [M, 4]
    return as_detections(image, {**parts, "boxes": boxes})


def as_detections(image: CocoImage, found: Mapping[str, Any]) -> list[Detection]:
    """Return what was found in an image as detections.

    Args:
        image: says which image it is.
        found: boxes [M, 4] in its pixels, labels [M] from 1 on, scores [M]; where there are masks, their probabilities
            inside the boxes, [M, 1, h, w].
    """
    boxes = found["boxes"]
    masks = found.get("masks", [None] * len(boxes))
    return [
        Detection(image.id, label - 1, score, _four(box), None if mask is None else _mask(mask, box, image.size))
        for label, score, box, mask in zip(
            found["labels"].tolist(), found["scores"].tolist(), boxes, masks, strict=True
        )
    ]


def _four(box: Tensor) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def _mask(probabilities: Tensor, box: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Return run lengths of probabilities [1, h, w] inside a box."""
    pasted: Tensor = paste_masks_in_image(probabilities[None], box[None], size)  # [1, 1, H, W]
    return encode_mask(pasted[0, 0] > 0.5)
