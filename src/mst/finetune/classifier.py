"""A backbone with a linear classifier on its global feature, trained whole.

Source: fine-tuning as in BEiT (Bao et al. 2022) and MAE (He et al. 2022, table 9), training from scratch as in DeiT
(Touvron et al. 2021, table 9). Differs: the feature is timm's own pooling of the network (CLS token of a ViT, mean of a
Swin), after its final norm. Letters: B images, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mst.errors import UsageError
from mst.model.backbone import Backbone
from mst.runtime.seeding import generator

HEAD_STD = 0.02
LR_BATCH = 256
"""Images per step that `base_lr` is stated for."""
TRAINED_LAYER_DECAY, FRESH_LAYER_DECAY = 0.75, 1.0


@dataclass(frozen=True)
class FinetuneProtocol:
    """How a classifier is trained: every setting that changes the numbers.

    The defaults are MAE's fine-tuning (He et al. 2022, table 9) with half its learning rate and a smaller batch.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        base_lr: highest learning rate of AdamW for 256 images a step; it grows with the batch.
        min_lr: learning rate of the last step.
        warmup_epochs: linear warm-up.
        weight_decay: none on biases, norms and embeddings.
        layer_decay: the rate of each block is this times that of the block above it; None = 0.75 for trained weights, 1
            for fresh ones.
        clip_norm: L2 norm of all gradients together is at most this; None = no clipping.
        drop_path: stochastic depth of the last block, linear from zero at the first.
        label_smoothing: share of each target that is spread over all classes.
        mixup: alpha of mixup's Beta distribution; 0 = no mixup.
        cutmix: alpha of CutMix's; 0 = no CutMix. With both, each step takes one of them.
        randaugment: timm's description of RandAugment, or `none`; three channels only.
        erasing: probability that a rectangle of an image becomes noise.
        repeats: views of each image in a batch (repeated augmentation); an epoch then shows fewer images.
        accumulate: microbatches, nearly equal, that make one step: less memory, the same step.
    """

    epochs: int = 100
    batch_size: int = 256
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_norm: float | None = None
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    randaugment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    repeats: int = 1
    accumulate: int = 1

    @property
    def images(self) -> int:
        """Images of a step: each has `repeats` views, the last ones fewer where a batch is no multiple of them."""
        return -(-self.batch_size // self.repeats)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "repeats", "accumulate"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.repeats > self.batch_size:
            raise UsageError(f"--repeats {self.repeats}: must be at most --batch-size {self.batch_size}")
        if self.accumulate > self.images:
            raise UsageError(
                f"--accumulate {self.accumulate}: must be at most {self.images}, the images of a --batch-size "
                f"{self.batch_size} with --repeats {self.repeats}"
            )
        for name in ("base_lr", "clip_norm", "layer_decay"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be above 0")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative")
        for name in ("drop_path", "label_smoothing", "erasing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 0 and below 1")
        if self.layer_decay is not None and self.layer_decay > 1:
            raise UsageError(f"--layer-decay {self.layer_decay}: must be at most 1")

    @property
    def lr(self) -> float:
        """Highest learning rate at this batch size."""
        return self.base_lr * self.batch_size / LR_BATCH


class Classifier(nn.Module):
    """Class scores of images.

    Attributes:
        backbone: trained as a whole, but for its mask token.
        head: linear, D to K.
    """

    def __init__(self, backbone: Backbone, classes: int, *, seed: int) -> None:
        """Put a classifier on a backbone; its weights are normal with deviation 0.02, drawn from `seed`."""
        super().__init__()
        self.backbone = backbone
        self.backbone.requires_grad_(True)
        self.backbone.mask_token.requires_grad_(False)
        self.head = nn.Linear(backbone.embed_dim, classes)
        with torch.no_grad():
            draws = torch.randn(self.head.weight.shape, generator=generator(seed, "classifier"))  # [K, D]
            self.head.weight.copy_(draws * HEAD_STD)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [B, K] of normalised images [B, C, H, W]."""
        features = self.backbone(images)  # [B, D]
        scores: Tensor = self.head(features)
        return scores
