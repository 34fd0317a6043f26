"""Training a detector: AdamW with layer-wise rates, the 1x schedule, clipping, skipped bad steps, exact resumption.

Source: 1x schedule and multi-scale training as in Mask R-CNN's reference implementations (He et al. 2019, "Rethinking
ImageNet pre-training"); layer-wise decay of the learning rate from BEiT (Bao et al. 2022) as used by ViTDet (Li et al.
2022, appendix A.2). Differs: every draw is a function of (seed, step), so a resumed run equals an uninterrupted one.
Letters: B images, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from mst.checkpoint.store import CheckpointStore
from mst.data.decoding import UnreadableImage
from mst.errors import DataError, Interrupted, RunFailure, UsageError
from mst.evaluate.coco import CocoImage, CocoSet
from mst.evaluate.detector import flipped, training_target
from mst.evaluate.features import progress_bar
from mst.runtime.logging import console, warn
from mst.runtime.seeding import derive_seed, generator
from mst.runtime.signals import GracefulStop

MAX_BAD_STEPS = 10
"""So many steps in a row without a finite loss end the training."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a detector is trained.

    Attributes:
        epochs: passes over the training images; 12 is the "1x" schedule.
        batch_size: images per step.
        lr: of AdamW at the heads, for 16 images a step.
        weight_decay: of AdamW; none on biases, norms and embeddings.
        layer_decay: the rate of each block is this times that of the block above it.
        warmup_steps: linear warm-up, at most a tenth of all steps.
        clip_norm: of all gradients together.
        frozen: train the pyramid and the heads only.
    """

    epochs: int = 12
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.7
    warmup_steps: int = 500
    clip_norm: float = 1.0
    frozen: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or min(self.lr, self.clip_norm) <= 0 or self.weight_decay < 0:
            raise UsageError("--epochs and --batch-size must be at least 1, --lr and --clip-norm above 0")
        if not 0.0 < self.layer_decay <= 1.0:
            raise UsageError(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often the training state is saved.

    Attributes:
        checkpoints: folder of checkpoints; the newest there is resumed. None = none.
        checkpoint_every: steps between two.
    """

    checkpoints: str | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise UsageError(f"--checkpoint-every {self.checkpoint_every}: must be at least 1")


def layer_of(name: str, blocks: Sequence[int]) -> int:
    """Return how deep a parameter of a detector lies: 0 embeddings, 1.. the blocks, then everything above.

    Args:
        name: of the parameter; a backbone's starts with `backbone.backbone.model.`.
        blocks: number of blocks of each stage; one number for a flat transformer.
    """
    inside = name.removeprefix("backbone.backbone.model.")
    if inside == name:
        return sum(blocks) + 1
    stage = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)", inside)
    if stage:
        return sum(blocks[: int(stage[1])]) + int(stage[2] or 0) + 1
    block = re.match(r"blocks\.(\d+)\.", inside)
    if block:
        return int(block[1]) + 1
    above = inside.startswith(("norm.", "fc_norm."))
    return sum(blocks) + 1 if above else 0


def detector_optimizer(detector: nn.Module, backbone: Any, settings: TrainingSettings) -> AdamW:
    """Return AdamW whose groups carry `scale`, the share of the learning rate that their layer gets."""
    model = backbone.model
    blocks = [len(stage.blocks) for stage in model.layers] if hasattr(model, "layers") else [len(model.blocks)]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith((".bias", "_embed", "_token", "bias_table"))
            groups.setdefault((layer_of(name, blocks), decayed), []).append(parameter)
    top = sum(blocks) + 1
    return AdamW(
        [
            {
                "params": members,
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "scale": settings.layer_decay ** (top - layer),
            }
            for (layer, decayed), members in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=0.0,
    )


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """Return the rate of the heads: linear warm-up, a tenth from 2/3 on, a hundredth from 11/12 on (1x)."""
    warmup = max(1, min(settings.warmup_steps, steps // 10))
    rate = settings.lr * min(1.0, (step + 1) / warmup)
    return rate * 0.1 ** sum(step >= steps * share for share in (2 / 3, 11 / 12))


def batch_positions(step: int, count: int, batch_size: int, seed: int) -> list[tuple[int, bool]]:
    """Return which images step `step` takes, and whether each is mirrored; each epoch has an order of its own."""
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, position = divmod(place, count)
        order = torch.randperm(count, generator=generator(seed, "detection-order", epoch))
        mirror = torch.rand((), generator=generator(seed, "detection-flip", epoch, position)).item() < 0.5
        chosen.append((int(order[position]), mirror))
    return chosen


@contextmanager
def drawn_from(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Let torchvision's own draws (proposals, image sizes) come from a seed; the process's state is put back."""
    seed = derive_seed(*parts)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def train_detector(
    detector: nn.Module,
    optimizer: AdamW,
    images: Sequence[CocoImage],
    settings: TrainingSettings,
    *,
    device: torch.device,
    channels: int,
    seed: int,
    saving: Checkpointing,
    identity: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Train in place; resume from the newest checkpoint if there is one.

    Args:
        detector: on `device`.
        optimizer: from `detector_optimizer`.
        images: with at least one object each.
        settings: how.
        device: where.
        channels: of the images.
        seed: of order, mirroring and torchvision's draws.
        saving: checkpoints.
        identity: what a checkpoint must have been trained with to be resumed.
        progress: show a bar.

    Returns:
        `steps`, `skipped_steps` and `final_loss` (mean of the last tenth).

    Raises:
        UsageError: the checkpoints are of other settings, data or weights.
        RunFailure: too many bad steps in a row, or the disk refused.
        Interrupted: a signal came; the state is saved where checkpoints are asked for.
    """
    steps = -(-len(images) * settings.epochs // settings.batch_size)
    store = CheckpointStore(Path(saving.checkpoints), keep=2) if saving.checkpoints else None
    state = _State(detector, optimizer, identity)
    if store is not None and store.steps():
        state.load(store)
    notice = "finishing this step" + (", then saving a checkpoint" if store else "; nothing is saved: no --checkpoints")
    with GracefulStop(notice) as stop, progress_bar("training detector", steps, shown=progress) as advance:
        advance(state.step)
        while state.step < steps:
            batch = _batch(images, batch_positions(state.step, len(images), settings.batch_size, seed), channels)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.step, steps, settings) * group["scale"]
            with drawn_from(device, seed, "detection-step", state.step):
                loss = _train_step(detector, optimizer, batch, device, settings.clip_norm)
            state.count(loss)
            advance(1)
            ended = stop.signum is not None or state.step == steps
            if store is not None and (ended or state.step % saving.checkpoint_every == 0):
                state.save(store)
            if stop.signum is not None and state.step < steps:
                hint = f"the same command resumes from {saving.checkpoints}" if store else "nothing was saved"
                raise Interrupted(f"stopped after step {state.step} of {steps}; {hint}", stop.signum)
    tail = [loss for loss in state.losses[-max(1, steps // 10) :] if loss is not None]
    final = sum(tail) / len(tail) if tail else None
    return {"steps": steps, "skipped_steps": state.losses.count(None), "final_loss": final}


class _State:
    """What a checkpoint holds: detector, optimizer, step, losses (None = a skipped step)."""

    def __init__(self, detector: nn.Module, optimizer: AdamW, identity: dict[str, Any]) -> None:
        self.detector, self.optimizer, self.identity = detector, optimizer, identity
        self.losses: list[float | None] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    def count(self, loss: float | None) -> None:
        """Note a step's loss; say so where it was bad, and stop after too many."""
        self.losses.append(loss)
        if loss is None:
            warn(f"detection step {self.step}: loss or gradient is not finite; step skipped")
        if self.step >= MAX_BAD_STEPS and not any(value is not None for value in self.losses[-MAX_BAD_STEPS:]):
            raise RunFailure(
                f"{MAX_BAD_STEPS} steps in a row without a finite loss: lower --lr or use --precision fp32"
            )

    def save(self, store: CheckpointStore) -> None:
        parts = {"detector": self.detector.state_dict(), "optimizer": self.optimizer.state_dict()}
        store.save(self.step, parts, {"identity": self.identity, "losses": self.losses})

    def load(self, store: CheckpointStore) -> None:
        """Take up the newest checkpoint.

        Raises:
            UsageError: it was trained with something else.
        """
        checkpoint = store.load_latest()
        saved = checkpoint.info.get("identity", {})
        other = sorted(key for key in {*saved, *self.identity} if saved.get(key) != self.identity.get(key))
        if other:
            raise UsageError(
                f"--checkpoints {checkpoint.path.parent} holds a training with other {', '.join(other)}: "
                "name another folder, or repeat its command"
            )
        self.detector.load_state_dict(checkpoint.parts["detector"])
        self.optimizer.load_state_dict(checkpoint.parts["optimizer"])
        self.losses = list(checkpoint.info["losses"])
        console.print(f"resuming the detector at step {self.step} from {checkpoint.path}", highlight=False)


def _batch(
    images: Sequence[CocoImage], chosen: Sequence[tuple[int, bool]], channels: int
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return images in [0, 1] [C, H, W] with their targets."""
    batch = []
    for index, mirror in chosen:
        try:
            pixels = images[index].read(channels=channels).float() / 255
        except UnreadableImage as problem:
            raise DataError(f"a training image cannot be read: {problem}") from problem
        pair = pixels, training_target(images[index])
        batch.append(flipped(*pair) if mirror else pair)
    return batch


def _train_step(
    detector: nn.Module,
    optimizer: AdamW,
    batch: Sequence[tuple[Tensor, dict[str, Tensor]]],
    device: torch.device,
    clip_norm: float,
) -> float | None:
    """Do one step; return its loss, or None where loss or gradient is not finite and nothing was changed."""
    detector.train()
    pixels = [image.to(device) for image, _ in batch]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
    losses: dict[str, Tensor] = detector(pixels, targets)
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    if not bool(torch.isfinite(loss)):
        return None
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(detector.parameters(), clip_norm)
    if not bool(torch.isfinite(norm)):
        return None
    optimizer.step()
    return float(loss.detach())


def trainable_images(coco: CocoSet) -> list[CocoImage]:
    """Return the images with an object that is no crowd.

    Raises:
        DataError: there is none.
    """
    kept = [image for image in coco.images if any(not found.crowd for found in image.objects)]
    if not kept:
        raise DataError(f"{coco.file}: no image has an object to learn from")
    return kept
