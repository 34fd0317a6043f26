"""The projection head: features to prototype logits.

Source: Caron et al. 2021 (DINO), section 3.1 and appendix C. The last layer is a weight-normalised linear layer
without bias, written out: unit directions times a gain, so that the gain can be frozen at one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.model.backbone import seeded


class Projection(NamedTuple):
    """Features as the prototypes see them; a loss may compare the two without the logits of all K in memory.

    Attributes:
        vectors: of length one [B, bottleneck], float32.
        prototypes: unit directions times the gain [K, bottleneck], float32.
    """

    vectors: Tensor
    prototypes: Tensor

    def logits(self) -> Tensor:
        """Return the products of both [B, K], float32; they run in the autocast type."""
        return F.linear(self.vectors, self.prototypes).float()


class ProjectionHead(nn.Module):
    """Linear, GELU, linear, GELU, linear, L2 normalisation, prototypes.

    Args:
        embed_dim: D of the features.
        hidden: width of the two hidden layers.
        bottleneck: width of the normalised vector.
        prototypes: K.
        norm: "batch" puts a BatchNorm after each hidden linear layer. The teacher's head then stays in training mode:
            it uses its own batch's statistics, as the student does (`mst.model.pair.TeacherStudent` sees to it).
        freeze_gain: keep the prototypes' lengths at one (DINO's `norm_last_layer`).

    Attributes:
        couples_images: whether an image's logits depend on the other images of the call (BatchNorm).
        prototypes: raw directions [K, bottleneck]; only their direction matters.
        gain: their lengths [K, 1].
    """

    def __init__(
        self, embed_dim: int, *, hidden: int, bottleneck: int, prototypes: int, norm: str, freeze_gain: bool
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden),
            _norm(norm, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            _norm(norm, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.couples_images = norm == "batch"
        self.prototypes = nn.Parameter(torch.zeros(prototypes, bottleneck))  # [K, bottleneck]
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not freeze_gain)  # [K, 1]

    def init_weights(self, seed: int = 0) -> None:
        """Write every parameter and buffer: linear layers normal with deviation 0.02, biases zero, gains one."""
        with seeded(seed):
            for layer in self.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
                elif isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm):
                    layer.reset_parameters()
            bound = self.prototypes.shape[1] ** -0.5  # nn.Linear's own, which DINO keeps for its last layer
            nn.init.uniform_(self.prototypes, -bound, bound)
            nn.init.ones_(self.gain)

    def forward(self, features: Tensor) -> Projection:
        """Return the projection of features [B, D]; both normalisations run in float32."""
        vectors = F.normalize(self.mlp(features).float(), dim=-1)  # [B, bottleneck]
        return Projection(vectors, self.gain.float() * F.normalize(self.prototypes.float(), dim=-1))


def _norm(kind: str, width: int) -> nn.Module:
    return nn.Identity() if kind == "none" else nn.BatchNorm1d(width)
