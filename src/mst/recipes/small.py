"""The network of the recipes for two CPU cores."""

from __future__ import annotations

from mst.config.schema import ModelConfig


def small_vit(*, patch_size: int, depth: int) -> ModelConfig:
    """Return a ViT 128 wide with a small head; why it is so stands in `mst.recipes.cifar10`.

    Args:
        patch_size: pixels per token side.
        depth: blocks.
    """
    return ModelConfig(
        backbone="vit_tiny_patch16_224",
        patch_size=patch_size,
        embed_dim=128,
        depth=depth,
        num_heads=4,
        drop_path=0.0,
        init="xavier_uniform",
        prototypes=1024,
        head_hidden=512,
        head_bottleneck=128,
        head_norm="batch",
    )
