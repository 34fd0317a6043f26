"""Semantic segmentation with one linear layer on frozen patch tokens: the quickest check of local features.

Source: the linear protocol of DINOv2 (Oquab et al. 2023), section 7.4: standardised patch tokens, one linear layer,
bilinear upsampling, cross-entropy. Differs: the tokens are computed once (no augmentation), they are standardised with
the training set's own statistics, and the loss is taken at a quarter of the resolution; scores always at the full one.
Letters: B images, N = h*w patch tokens, D features, K classes, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from mst.errors import UsageError
from mst.evaluate.features import FeatureSettings, device_of, extract_features, forward_batch, frozen, progress_bar
from mst.evaluate.image_sets import ImageSet
from mst.evaluate.metrics import SegmentationScores, confusion_matrix
from mst.evaluate.protocol import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from mst.evaluate.segmentation_data import SegmentationData, SegmentationSet, check_mask
from mst.runtime.results import Result
from mst.runtime.seeding import generator

if TYPE_CHECKING:
    from mst.model.backbone import Backbone

NO_CLASS = -1
"""Mask value of pixels without a class inside this module."""


@dataclass(frozen=True)
class SegmentationProtocol:
    """Settings of the linear segmentation probe that change its numbers.

    Attributes:
        size: (H, W) every image is resized to; None = the first training image's, each side to the nearest
            multiple of the patch. Scores are taken at each mask's own size.
        steps: optimizer steps.
        batch_size: images per step; at most the training images.
        lr: of AdamW, cosine to 0.
        weight_decay: of AdamW.
        loss_stride: the loss is taken on every n-th pixel in both directions.
    """

    size: tuple[int, int] | None = None
    steps: int = 1000
    batch_size: int = 16
    lr: float = 1e-2
    weight_decay: float = 1e-4
    loss_stride: int = 4

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.loss_stride) < 1 or self.lr <= 0 or self.weight_decay < 0:
            raise UsageError("--steps, --batch-size and --loss-stride must be at least 1, --lr above 0")


class PatchMaps(NamedTuple):
    """Patch tokens of a set, float16 to halve the memory, and the masks they are trained on.

    Attributes:
        tokens: [n, D, h, w].
        masks: [n, H/stride, W/stride], int64, NO_CLASS where there is none.
    """

    tokens: Tensor
    masks: Tensor


class LinearSegmenter(nn.Module):
    """Standardise, one 1x1 convolution, bilinear upsampling."""

    mean: Tensor
    std: Tensor

    def __init__(self, tokens: Tensor, num_classes: int, draw: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", tokens.float().mean((0, 2, 3))[:, None, None])  # [D,1,1]
        self.register_buffer("std", tokens.float().std((0, 2, 3)).clamp(min=1e-6)[:, None, None])
        self.classify = nn.Conv2d(tokens.shape[1], num_classes, 1)
        with torch.no_grad():
            self.classify.weight.copy_(0.01 * torch.randn(self.classify.weight.shape, generator=draw))
            self.classify.bias.zero_()  # type: ignore[union-attr]

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits [B, K, H, W] for tokens [B, D, h, w] and a size (H, W)."""
        logits = self.classify((tokens.float() - self.mean) / self.std)  # [B,K,h,w]
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def patch_map(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the final patch tokens as maps [B, D, h, w]."""
    tokens = backbone.tokens(images, importance=False)
    return tokens.patches.transpose(1, 2).reshape(len(images), -1, *tokens.grid)


def evaluate_patch_segmentation(
    backbone: Backbone,
    data: SegmentationData,
    protocol: SegmentationProtocol | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    settings: FeatureSettings | None = None,
    seed: int = 0,
) -> Result:
    """Train a linear layer on the training images' patch tokens, score it on the validation images.

    Returns:
        Result with `miou`, `macc`, `aacc` in percent; `extra["per_class"]` has IoU and accuracy of each class (None
        where the class does not occur).

    Raises:
        UsageError: the size is no multiple of the patch, or a split is empty.
        DataError: a mask has another size than its image or a value that is no class.
    """
    protocol, settings = protocol or SegmentationProtocol(), settings or FeatureSettings(forward_batch=16)
    if min(len(data.train), len(data.val)) == 0:
        raise UsageError("segmentation needs at least one training and one validation image")
    size = protocol.size or fitting_size(data.train.read(0)[0], backbone.patch_size)
    if size[0] % backbone.patch_size or size[1] % backbone.patch_size:
        raise UsageError(f"--size {size[0]} {size[1]}: both must be multiples of the patch size {backbone.patch_size}")
    transform = ImageTransform(size, mean, std)
    train = training_maps(backbone, data, transform, protocol.loss_stride, settings)
    head = train_segmenter(train, len(data.classes), protocol, device_of(backbone), seed, progress=settings.progress)
    confusion = score_segmenter(backbone, head, data, transform, settings)
    scores = SegmentationScores.from_confusion(confusion)
    per_class = [
        {"name": name, "iou": None if math.isnan(iou) else iou, "accuracy": None if math.isnan(acc) else acc}
        for name, iou, acc in zip(data.classes, scores.iou, scores.accuracy, strict=True)
    ]
    return Result(
        task="patch_segmentation",
        metrics={"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc},
        protocol={
            **asdict(protocol),
            "size": list(size),
            "ignore_index": data.ignore_index,
            "mean": mean,
            "std": std,
            "precision": settings.precision,
        },
        seed=seed,
        extra={"train_images": len(data.train), "val_images": len(data.val), "per_class": per_class},
    )


def fitting_size(image: Tensor, patch_size: int) -> tuple[int, int]:
    """Return the image's (H, W), each side to the nearest multiple of the patch, at least one patch."""
    height, width = (max(patch_size, round(side / patch_size) * patch_size) for side in image.shape[-2:])
    return height, width


def squash(image: Tensor, transform: ImageTransform) -> Tensor:
    """Return a uint8 image [C, H, W] resized to the transform's size, aspect ratio not kept, and normalised."""
    if tuple(image.shape[-2:]) != transform.size:
        image = V.resize(image, list(transform.size), InterpolationMode.BICUBIC, antialias=True)
    return transform.normalise(image)


def training_maps(
    backbone: Backbone, data: SegmentationData, transform: ImageTransform, stride: int, settings: FeatureSettings
) -> PatchMaps:
    """Return the training images' tokens and masks; nothing may be unreadable."""
    height, width = (math.ceil(side / stride) for side in transform.size)
    masks = torch.empty(len(data.train), height, width, dtype=torch.int64)

    def read(index: int) -> Tensor:
        image, mask = checked_pair(data.train, index, data)
        masks[index] = F.interpolate(mask[None, None].float(), (height, width), mode="nearest-exact")[0, 0].long()
        return squash(image, transform)

    images = ImageSet(data.train.names, torch.zeros(len(data.train), dtype=torch.int64), read)
    strict = replace(settings, max_unreadable_share=0.0)
    maps = extract_features(backbone, images, _as_is, patch_map, strict, title="training patch tokens")
    return PatchMaps(maps.features.half(), masks)


def _as_is(image: Tensor) -> Tensor:
    return image


def checked_pair(pairs: SegmentationSet, index: int, data: SegmentationData) -> tuple[Tensor, Tensor]:
    """Return one image and its mask with NO_CLASS in place of the ignore index; refuse what does not fit."""
    image, mask = pairs.read(index)
    if mask.shape != image.shape[-2:]:
        raise UsageError(f"{pairs.names[index]}: mask {tuple(mask.shape)} and image {tuple(image.shape[-2:])} differ")
    check_mask(mask, len(data.classes), data.ignore_index, pairs.names[index])
    return image, mask if data.ignore_index is None else mask.masked_fill(mask == data.ignore_index, NO_CLASS)


def train_segmenter(
    train: PatchMaps,
    num_classes: int,
    protocol: SegmentationProtocol,
    device: torch.device,
    seed: int,
    *,
    progress: bool,
) -> LinearSegmenter:
    """Train the linear layer with AdamW and a cosine schedule; pixels without a class count for nothing."""
    count = len(train.tokens)
    head = LinearSegmenter(train.tokens, num_classes, generator(seed, "segmentation-head")).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay)
    draw = generator(seed, "segmentation-order")
    size = (train.masks.shape[1], train.masks.shape[2])
    with progress_bar("linear segmentation", protocol.steps, shown=progress) as advance:
        for step in range(protocol.steps):
            for group in optimizer.param_groups:
                group["lr"] = protocol.lr * 0.5 * (1 + math.cos(math.pi * step / protocol.steps))
            chosen = torch.randperm(count, generator=draw)[: protocol.batch_size]
            logits = head(train.tokens[chosen].to(device), size)  # [B,K,H/s,W/s]
            target = train.masks[chosen].to(device)
            loss = F.cross_entropy(logits, target, ignore_index=NO_CLASS, reduction="sum")
            loss = loss / (target != NO_CLASS).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(1)
    return head


def score_segmenter(
    backbone: Backbone,
    head: LinearSegmenter,
    data: SegmentationData,
    transform: ImageTransform,
    settings: FeatureSettings,
) -> Tensor:
    """Return the confusion matrix [K, K] over all validation pixels, each image at its mask's own size."""
    confusion = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64)
    with frozen(backbone), progress_bar("scoring", len(data.val), shown=settings.progress) as advance:
        for index in range(len(data.val)):
            image, mask = checked_pair(data.val, index, data)
            tokens = forward_batch(backbone, squash(image, transform)[None], patch_map, settings.precision)
            prediction = head(tokens, (mask.shape[0], mask.shape[1])).argmax(1)[0].cpu()  # [H,W]
            confusion += confusion_matrix(prediction, mask, len(data.classes), ignore_index=NO_CLASS)
            advance(1)
    return confusion
