"""The record that crosses from views to training: stacked crops of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Views(NamedTuple):
    """Crops of B images, uint8 or normalised float32 (`mst.views.normalise` turns the first into the second).

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
