"""The records that cross from views to training: stacked crops of a microbatch, as loaded and as networks take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Crops(NamedTuple):
    """Crops of B images as they are loaded: uint8, on any device.

    Attributes:
        global_crops: [G, B, C, H, W].
        local_crops: [L, B, C, H', W']; L may be 0.
        indices: position of each image in the dataset [B], int64.
        positions: of these images in the batch of the step, where they are not all of it.
    """

    global_crops: Tensor
    local_crops: Tensor
    indices: Tensor
    positions: range | None = None


class Views(NamedTuple):
    """Crops of B images as the networks take them: normalised float32, on the networks' device.

    Attributes:
        global_crops: [G, B, C, H, W].
        local_crops: [L, B, C, H', W']; L may be 0.
        indices: position of each image in the dataset [B], int64.
        positions: of these images in the batch of the step, where they are not all of it.
    """

    global_crops: Tensor
    local_crops: Tensor
    indices: Tensor
    positions: range | None = None
