"""Semantic segmentation with one linear layer on frozen patch tokens: the quickest check of local features.

Source: the linear protocol of DINOv2 (Oquab et al. 2023), section 7.4: standardised patch tokens, one linear layer,
bilinear upsampling, cross-entropy. Differs: the tokens are computed once (no augmentation), they are standardised with
the training set's own statistics, and the loss is taken at a quarter of the resolution; scores at full resolution.
Letters: B images, D features, K classes, H W pixels, h w patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.data.decoding import UnreadableImage
from mst.errors import DataError
from mst.evaluate.common.features import FeatureSettings, device_of, extract_features, feature_map, progress_bar
from mst.evaluate.common.protocol import resized
from mst.evaluate.segmentation.checks import judged
from mst.evaluate.segmentation.data import SegmentationData, check_found
from mst.evaluate.segmentation.heads import LinearHead
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.training import coarse, pixel_loss
from mst.model.tokens import Tokens
from mst.runtime.seeding import generator


class PatchColours(nn.Module):
    """What a linear layer is given in place of a backbone's tokens: colour statistics of each patch and around it.

    For each channel mean, deviation and squared mean of the patch, and the mean of 3 x 3 and of 7 x 7 patches.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = patch_size, 5 * channels

    def tokens(self, images: Tensor, *, importance: bool = False) -> Tokens:
        """Return the statistics of normalised images [B, C, H, W] as tokens [B, N, 5 C], and their mean as CLS."""
        mean = F.avg_pool2d(images.float(), self.patch_size)  # [B,C,h,w]
        square = F.avg_pool2d(images.float().square(), self.patch_size)
        around = [F.avg_pool2d(mean, side, 1, side // 2, count_include_pad=False) for side in (3, 7)]
        found = torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt(), mean.square(), *around], dim=1)
        patches = found.flatten(2).transpose(1, 2)
        return Tokens(patches.mean(1), patches, (mean.shape[2], mean.shape[3]), None)


class UnusablePair(UnreadableImage):
    """A pair whose image or mask cannot be used; the reason names the file."""

    def __str__(self) -> str:
        return self.reason


class PatchMaps(NamedTuple):
    """Patch tokens of a set, float16 to halve the memory, and the masks they are trained on.

    Attributes:
        tokens: [n, D, h, w].
        masks: [n, H/stride, W/stride], int64, NO_CLASS where there is none.
    """

    tokens: Tensor
    masks: Tensor


@dataclass(frozen=True)
class TokenTraining:
    """How the linear layer is trained on tokens: AdamW, cosine to 0, all draws from the seed."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    loss_stride: int
    class_weights: Tensor | None
    seed: int


def train_on_tokens(
    segmenter: Segmenter,
    data: SegmentationData,
    view: View,
    training: TokenTraining,
    settings: FeatureSettings,
) -> list[str]:
    """Train the linear head of a segmenter, in place, on the training images' patch tokens.

    Returns:
        A line for each pair that is missing or cannot be used, and was left out.

    Raises:
        DataError: they are more than `max_unreadable_share`, or the masks hold nothing to learn from.
    """
    maps, left_out = training_maps(segmenter, data, view, training.loss_stride, settings)
    check_found(data, set(torch.unique(maps.masks).tolist()), "training")
    prepare_head(segmenter.head, maps.tokens, training.seed)
    fit_head(segmenter.head, maps, training, progress=settings.progress)
    return left_out


def training_maps(
    segmenter: Segmenter, data: SegmentationData, view: View, stride: int, settings: FeatureSettings
) -> tuple[PatchMaps, list[str]]:
    """Return the training images' tokens and masks, and a line for each pair that was left out.

    Raises:
        DataError: they are more than `max_unreadable_share`.
    """
    masks = torch.empty(len(data.train), *(math.ceil(side / stride) for side in view.size), dtype=torch.int64)

    images = _TrainingImages(data, view, masks)
    maps = extract_features(
        segmenter.backbone, images, _as_is, feature_map, settings, title="training patch tokens", tell=False
    )
    left_out = judged(data.train, list(maps.unreadable), settings, "training")
    halves = maps.features.half()
    tokens = halves if bool(halves.isfinite().all()) else maps.features
    return PatchMaps(tokens, masks[list(maps.positions)]), left_out


@dataclass(frozen=True)
class _TrainingImages:
    """Normalised training images; reading one also stores its mask."""

    data: SegmentationData
    view: View
    masks: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.data.train)

    def name(self, index: int) -> str:
        return self.data.train.name(index)

    def read(self, index: int) -> Tensor:
        try:
            image, mask = self.data.checked(self.data.train, index)
        except UnreadableImage as problem:
            raise UnusablePair(problem.name, str(problem)) from problem
        except DataError as problem:
            raise UnusablePair(self.name(index), str(problem)) from problem
        self.masks[index] = coarse(mask[None], self.masks.shape[1:])[0]
        return self.view.normalise(resized(image, self.view.size))


def _as_is(image: Tensor) -> Tensor:
    return image


def prepare_head(head: LinearHead, tokens: Tensor, seed: int) -> None:
    """Give a head the statistics of tokens [n, D, h, w], small weights from `seed` and zero biases."""
    drawn = torch.randn(head.classify.weight.shape, generator=generator(seed, "segmentation-head"))
    state = {
        "standardise.running_mean": tokens.float().mean((0, 2, 3)),  # [D]
        "standardise.running_var": tokens.float().var((0, 2, 3)),
        "standardise.num_batches_tracked": torch.tensor(1),
        "classify.weight": 0.01 * drawn,
        "classify.bias": torch.zeros(len(drawn)),
    }
    head.load_state_dict(state)


def fit_head(head: LinearHead, train: PatchMaps, training: TokenTraining, *, progress: bool) -> None:
    """Train the linear layer; pixels without a class are ignored."""
    device, draw = device_of(head), generator(training.seed, "segmentation-order")
    weights = None if training.class_weights is None else training.class_weights.to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    head.eval()  # the statistics stay as they are
    with progress_bar("linear segmentation", training.steps, shown=progress) as advance:
        for step in range(training.steps):
            for group in optimizer.param_groups:
                group["lr"] = training.lr * 0.5 * (1 + math.cos(math.pi * step / training.steps))
            chosen = torch.randperm(len(train.tokens), generator=draw)[: training.batch_size]
            logits = head([train.tokens[chosen].to(device)])  # [B,K,h,w]
            loss = pixel_loss(logits, train.masks[chosen].to(device), weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(1)
