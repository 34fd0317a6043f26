"""From uint8 crops to the networks' input: the one place that normalises views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mst.errors import ConfigError
from mst.runtime.device import to_device
from mst.views.record import Crops, Views


def as_views(crops: Crops, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Views:
    """Bring crops to the networks' device, if they are not there, and normalise them; arguments as of `normalise`."""
    large, small = (normalise(to_device(part, device), mean, std) for part in (crops.global_crops, crops.local_crops))
    return Views(large, small, crops.indices, crops.positions)


def normalise(crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (crops / 255 - mean) / std as float32, on the crops' device.

    Args:
        crops: uint8 [..., C, H, W].
        mean: per channel, in [0, 1]; length C, or 1 for all channels alike.
        std: as mean.

    Raises:
        ConfigError: the lengths do not fit the number of channels.
    """
    channels = crops.shape[-3]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"views.{name} has {len(values)} values, images have {channels} channels: give {channels}"
            )
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))  # [C]
    offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    scale, offset = (numbers.float().view(-1, 1, 1).to(crops.device, non_blocking=True) for numbers in (scale, offset))
    if crops.device.type != "cpu":
        return crops.float().mul_(scale).add_(offset)
    result = torch.empty(crops.shape)
    rows = (math.prod(crops.shape[:-3]), *crops.shape[-3:])
    for into, crop in zip(result.view(rows), crops.reshape(rows), strict=True):  # one by one they fit in the cache
        into.copy_(crop).mul_(scale).add_(offset)
    return result
