"""The student, its teacher (a moving average of it) and the image decoder.

Source: Caron et al. 2021 (DINO), section 3.1; the decoder is MST's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from mst.config.schema import ModelConfig, RunPlan
from mst.errors import UsageError
from mst.model.backbone import Backbone, seeded
from mst.model.build import backbone_spec, build_backbone
from mst.model.decoder import build_decoder
from mst.model.head import ProjectionHead
from mst.model.stochastic_depth import Draw, branch_draws
from mst.model.tokens import Tokens


class Branch(nn.Module):
    """A backbone and a projection head."""

    backbone: Backbone
    head: ProjectionHead

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor, mask: Tensor | None = None, *, importance: bool = False) -> tuple[Tokens, Tensor]:
        """Return the tokens and the logits [B, K], float32, of images [B, C, H, W] with mask [B, N] or None."""
        tokens = self.backbone.tokens(images, mask, importance=importance)
        return tokens, self.head(tokens.cls).logits()


class StudentInput(NamedTuple):
    """Crops of one size that the student sees.

    Attributes:
        images: n crops of each of B images, normalised [n*B, C, H, W].
        mask: tokens hidden from the student [n*B, N], or None.
        restored: whether the image decoder restores them.
        draw: random numbers for stochastic depth; None = torch's global generator.
    """

    images: Tensor
    mask: Tensor | None
    restored: bool
    draw: Draw | None = None


class StudentOutput(NamedTuple):
    """What the student makes of some crops.

    Attributes:
        vectors: of each input [n*B, bottleneck], float32.
        prototypes: [K, bottleneck], float32.
        reconstruction: of the restored input [n*B, C, H, W], or None.
    """

    vectors: tuple[Tensor, ...]
    prototypes: Tensor
    reconstruction: Tensor | None


class TeacherStudent(nn.Module):
    """Everything that is trained or averaged in a run.

    Its `forward` is one part of the student's work, so that whatever wraps modules (DDP, FSDP, hooks) sees each.

    The teacher never takes gradients. Its backbone is always in evaluation mode (it has no stochastic depth), its
    head always in training mode: that changes something only with `head_norm = batch`, where the teacher then uses the
    statistics of its own batch, as the student does.
    """

    student: Branch
    teacher: Branch
    decoder: nn.Module | None

    def __init__(self, student: Branch, teacher: Branch, decoder: nn.Module | None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        self.decoder = decoder
        self.train()

    def forward(self, inputs: Sequence[StudentInput]) -> StudentOutput:
        """Run the student on one part of its crops: all of them go through the head together.

        Raises:
            UsageError: an image is to be restored and there is no decoder.
        """
        features, reconstruction = [], None
        for images, mask, restored, draw in inputs:
            with branch_draws(draw):
                if restored:
                    tokens = self.student.backbone.tokens(images, mask, importance=False)  # patches [n*B, N, D]
                    features.append(tokens.cls)  # [n*B, D]
                    reconstruction = self._restored(tokens)  # [n*B, C, H, W]
                else:
                    features.append(self.student.backbone.summary(images, mask, importance=False).cls)
        vectors, prototypes = self.student.head(torch.cat(features))
        return StudentOutput(vectors.split([len(part) for part in features]), prototypes, reconstruction)

    def _restored(self, tokens: Tokens) -> Tensor:
        if self.decoder is None:
            raise UsageError("a restoration weight, but no image decoder: build the pair with one")
        reconstruction: Tensor = self.decoder(tokens.patches, tokens.grid)
        return reconstruction

    def train(self, mode: bool = True) -> Self:
        """Set the student's and the decoder's mode; the teacher keeps its own."""
        super().train(mode)
        self.teacher.backbone.eval()
        self.teacher.head.train()
        return self


def build_pair(model: ModelConfig, plan: RunPlan, *, channels: int, restoration: bool, seed: int) -> TeacherStudent:
    """Build an initialised pair; the teacher starts as a copy of the student.

    Args:
        model: backbone, head and decoder settings.
        plan: gives the number of prototypes and the size (H, W) of a global crop.
        channels: C.
        restoration: whether there is an image decoder; without it the other weights are the same.
        seed: the weights are a function of it and of the settings; the process's random state is left alone.

    Raises:
        UsageError: a backbone that does not exist or does not fit the crops.
    """
    spec = backbone_spec(model, image_size=plan.global_size, channels=channels)
    build = partial(build_backbone, spec, seed=seed, init=model.init, positions=model.positions)
    student, teacher = (
        _branch(build(drop_path=drop_path), model, plan.prototypes, seed + 1) for drop_path in (model.drop_path, 0.0)
    )
    teacher.load_state_dict(student.state_dict())
    decoder = None
    if restoration:
        backbone = student.backbone
        decoder = build_decoder(
            model.decoder,
            embed_dim=backbone.embed_dim,
            patch_size=backbone.patch_size,
            channels=channels,
            seed=seed + 2,
        )
    return TeacherStudent(student, teacher, decoder)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: parameters to `momentum * teacher + (1 - momentum) * student`, buffers copied; in place."""
    own: list[Tensor] = [own_part(parameter) for parameter in teacher.parameters()]
    other: list[Tensor] = [own_part(parameter) for parameter in student.parameters()]
    if len(own) != len(other):
        raise ValueError(f"teacher has {len(own)} parameters, student {len(other)}")
    torch._foreach_lerp_(own, other, 1.0 - momentum)
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        target.copy_(source)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor that is divided over processes (a DTensor); else the tensor."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _branch(backbone: Backbone, model: ModelConfig, prototypes: int, seed: int) -> Branch:
    with seeded(seed):  # layers draw weights when they are made; init_weights then replaces them
        head = ProjectionHead(
            backbone.embed_dim,
            hidden=model.head_hidden,
            bottleneck=model.head_bottleneck,
            prototypes=prototypes,
            norm=model.head_norm,
            freeze_gain=model.norm_last_layer,
        )
    head.init_weights(seed)
    return Branch(backbone, head)
