"""A backbone as a graph is made of it: plain operations of torch, the outputs that were asked for.

Letters (docs/algorithm.md): B images, C channels, H W pixels, N patch tokens, D embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mst.errors import RunFailure, UsageError
from mst.model.backbone import Backbone
from mst.model.tokens import Tokens

OUTPUTS = ("features", "patch_tokens", "importance", "cls_token")
"""What an exported graph can give: [B, D], [B, N, D], [B, N], [B, D]."""


class Outputs(nn.Module):
    """A backbone in evaluation mode that returns chosen outputs as a tuple.

    Attributes:
        names: of the outputs, in order.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        """Take a plain copy of the backbone; it computes on the CPU without gradients."""
        super().__init__()
        self.names = tuple(name for name in OUTPUTS if name in names)
        self.backbone = plain(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for normalised images [B, C, H, W]."""
        tokens = self.backbone(images, want="tokens", importance="importance" in self.names)
        found = tokens_by_name(tokens)
        return tuple(found[name] for name in self.names)


def tokens_by_name(tokens: Tokens) -> dict[str, Any]:
    """Return the outputs that tokens hold, under their names."""
    return {
        "features": tokens.cls,
        "patch_tokens": tokens.patches,
        "importance": tokens.importance,
        "cls_token": tokens.cls_token,
    }


def plain(backbone: Backbone) -> Backbone:
    """Return a copy whose blocks compute with torch's own operations only, as every exporter knows them."""
    other: Any = copy.deepcopy(backbone).cpu().eval().requires_grad_(False)
    for module in other.modules():
        if hasattr(module, "lean"):
            module.lean = False
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    if hasattr(other, "reads_only_cls"):
        other.reads_only_cls = False
    found: Backbone = other
    return found


@torch.no_grad()
def expected(backbone: Backbone, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the outputs of this package for normalised images [B, C, H, W].

    Raises:
        UsageError: the network has no CLS token.
        RunFailure: they are no finite numbers.
    """
    tokens = backbone.tokens(images, importance="importance" in names)
    if "cls_token" in names and tokens.cls_token is None:
        raise UsageError(f"--outputs cls_token: {backbone.spec.name} has none: features are made of all patch tokens")
    values = tokens_by_name(tokens) | {"features": backbone(images)}
    for name in names:
        if not bool(values[name].isfinite().all()):
            raise RunFailure("the features are not finite numbers, although the weights are: the training diverged")
    return {name: values[name].float() for name in names}
