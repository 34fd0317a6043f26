"""The global image decoder: patch tokens, hidden and visible, back to the pixels of the whole image.

Source: Li et al. 2021 (MST), section 3.3, which says that it is convolutional; the layers are this project's
(docs/algorithm.md, item 5). Used in training only.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mst.errors import UsageError
from mst.model.backbone import seeded
from mst.model.lean import NormGelu

PIXEL_WIDTH = 12  # channels per pixel before the last layer; keeps the decoder below 10 % of a DeiT-S step


class ImageDecoder(nn.Module):
    """Layers over the map of patch tokens."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def init_weights(self, seed: int = 0) -> None:
        """Write every parameter: torch's own initialisation of convolutions and norms."""
        with seeded(seed):
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d | nn.GroupNorm):
                    layer.reset_parameters()

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the reconstruction [B, C, H, W] of patch tokens [B, N, D] on a grid (h, w)."""
        maps = patches.reshape(len(patches), *grid, -1).permute(0, 3, 1, 2)  # [B, D, h, w], channels last in memory
        reconstruction: Tensor = self.layers(maps)  # [B, C, H, W]
        return reconstruction


def build_decoder(
    kind: Literal["cnn", "linear"], *, embed_dim: int, patch_size: int, channels: int, seed: int = 0
) -> ImageDecoder:
    """Build and initialise a decoder.

    Args:
        kind: "cnn" or "linear" (one 1x1 convolution and a pixel shuffle).
        embed_dim: D.
        patch_size: pixels per token side. The CNN doubles the resolution once per factor of two; an odd rest (7 of
            14) is one last pixel shuffle.
        channels: C.
        seed: of the weights.

    Raises:
        UsageError: unknown kind.
    """
    if kind not in _LAYERS:
        raise UsageError(f"unknown decoder {kind!r}: use cnn or linear")
    with seeded(seed):  # layers draw weights when they are made; init_weights then replaces them
        decoder = ImageDecoder(nn.Sequential(*_LAYERS[kind](embed_dim, patch_size, channels)))
    decoder.init_weights(seed)
    return decoder


def _linear(embed_dim: int, patch_size: int, channels: int) -> list[nn.Module]:
    return [nn.Conv2d(embed_dim, channels * patch_size**2, 1), nn.PixelShuffle(patch_size)]


def _cnn(embed_dim: int, patch_size: int, channels: int) -> list[nn.Module]:
    width, odd = PIXEL_WIDTH * patch_size, patch_size
    layers: list[nn.Module] = [nn.Conv2d(embed_dim, width, 1)]
    while odd % 2 == 0:
        # The identity keeps the numbers of the layers, which are names in checkpoints: GELU had one of its own.
        layers += [nn.Conv2d(width, 2 * width, 3, padding=1), NormGelu(1, 2 * width), nn.Identity(), nn.PixelShuffle(2)]
        width, odd = width // 2, odd // 2  # a shuffle by two turns 2 * width channels into width / 2
    layers.append(nn.Conv2d(width, channels * odd**2, 3, padding=1))
    if odd > 1:
        layers.append(nn.PixelShuffle(odd))
    return layers


_LAYERS = {"cnn": _cnn, "linear": _linear}
