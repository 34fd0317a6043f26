"""How much memory a backbone takes at most in training, from its sizes alone: coarse, and at no cost."""

from __future__ import annotations

from mst.model.backbone import BackboneSpec
from mst.model.build import own_sizes

BYTES_A_WIDTH = 120
"""Most bytes that a block keeps or uses at a time for each number of a token, with float32 and no recomputation."""


def most_of_tokens(spec: BackboneSpec, *, kept: int, seen: int) -> float:
    """Return the most bytes that a backbone takes of so many tokens that its blocks keep, and so many that come out."""
    own = own_sizes(spec.name)
    stages = 4 if own.width != own.embed_dim else 1  # Swin: tokens times width fall by two from stage to stage
    width = own.width * (spec.embed_dim or own.embed_dim) / own.embed_dim
    depth = own.depth if spec.depth is None else spec.depth + stages
    return stages * (kept * depth + seen) * width * BYTES_A_WIDTH


def most_of_scores(spec: BackboneSpec, tokens: int) -> int:
    """Return the most bytes of an image's attention, each token to each."""
    return 16 * (spec.num_heads or own_sizes(spec.name).width // 32) * tokens**2
