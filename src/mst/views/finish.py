"""The photometric half of the augmentation on whole batches: jitter, grey, blur, solarize, on any device.

Crops come in and go out as uint8 and are float32 in between. Large crops that take the jitter's operations in the same
order are worked on together; a crop's result depends on the crop and its parameters alone, bit for bit on CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mst.runtime.device import to_device
from mst.views import colour, crop
from mst.views.parameters import ColourParameters
from mst.views.record import Crops

LARGE_CROP = 1 << 14
"""Values from which crops of one order of operations are gathered, so that none is copied for an operation."""
CACHED_VALUES = 3 << 16
"""Values of large crops worked on together: what fits in the second-level cache with its intermediate results."""
CHUNK_VALUES = {"cpu": 1 << 18, "other": 1 << 25}
"""Values of smaller crops, or of any on a GPU, worked on together, so that they share the cost of a call."""


def finish(crops: Tensor, parameters: ColourParameters, finished: Tensor) -> None:
    """Change the colours of n crops.

    Args:
        crops: uint8 [n, C, h, w] on any device, in any memory layout.
        parameters: of the n crops.
        finished: where the results go, of the crops' shape; may be the crops themselves.
    """
    n, C, h, w = crops.shape
    if crops.device.type == "cpu" and C * h * w >= LARGE_CROP:
        _finish_large(crops, parameters, finished)
        return
    step = max(1, CHUNK_VALUES["cpu" if crops.device.type == "cpu" else "other"] // (C * h * w))
    for start in range(0, n, step):
        some = crops[start : start + step].transpose(0, 1)  # [C, m, h, w]
        planes = some.to(torch.float32, memory_format=torch.contiguous_format)
        change_colours(planes, parameters[start : start + step])
        finished[start : start + step].transpose(0, 1).copy_(_whole(planes))


def finish_crops(cut: Crops, numbers: Tensor, device: torch.device) -> Crops:
    """Bring crops that were only cut to a device and change their colours there.

    Args:
        cut: uint8 crops on the CPU, as `MultiCrop.cut` leaves them.
        numbers: `ColourParameters.as_numbers` of every crop, [V, B, COLOUR_NUMBERS], global crops first.
        device: where to.
    """
    G, rows = len(cut.global_crops), numbers.flatten(0, 1).numpy()
    parameters = ColourParameters.from_numbers(rows)
    large = G * numbers.shape[1]
    done = []
    for part, some in ((cut.global_crops, parameters[:large]), (cut.local_crops, parameters[large:])):
        crops = to_device(part, device).contiguous()  # [V, B, C, h, w]
        finish(crops.flatten(0, 1), some, crops.flatten(0, 1))
        done.append(crops)
    return Crops(done[0], done[1], cut.indices, cut.positions)


def change_colours(planes: Tensor, parameters: ColourParameters) -> None:
    """Jitter, grey, blur, solarize n crops in place.

    Args:
        planes: float32 [C, n, h, w], 0-255.
        parameters: of the n crops.
    """
    colour.jitter(planes, parameters)
    colour.on_rows(planes, parameters.grey.nonzero()[0].tolist(), colour.turn_grey)
    blurred = (parameters.sigma >= crop.SMALLEST_SIGMA).nonzero()[0].tolist()
    colour.on_rows(planes, blurred, lambda some: crop.blur(some, parameters.sigma[blurred]))
    colour.on_rows(planes, parameters.solarize.nonzero()[0].tolist(), colour.solarize)


def _finish_large(crops: Tensor, parameters: ColourParameters, finished: Tensor) -> None:
    """Do `finish`: the jitter to crops that take it in one order, all else to each crop alone."""
    p = parameters
    most = max(1, CACHED_VALUES // crops[0].numel())
    factors = torch.from_numpy(p.factors).float()[..., None, None]  # [n, 4, 1, 1]
    rest = list(zip(p.grey.tolist(), p.sigma.tolist(), p.solarize.tolist(), strict=True))
    orders: dict[tuple[int, ...], list[int]] = {}
    for row, order in enumerate(p.order.tolist()):
        orders.setdefault(tuple(order), []).append(row)
    sources, places = crops.unbind(), finished.unbind()
    for order, alike in orders.items():
        for start in range(0, len(alike), most):
            rows = alike[start : start + most]
            planes = torch.empty(crops.shape[1], len(rows), *crops.shape[2:])  # [C, m, h, w]
            ones = torch.split(planes, 1, dim=1)  # each [C, 1, h, w]
            for one, row in zip(ones, rows, strict=True):
                one[:, 0].copy_(sources[row])
            colour.adjust(planes, order, factors[rows])
            for one, row in zip(ones, rows, strict=True):
                _change_rest(one, *rest[row])
            for whole, row in zip(_whole(planes).unbind(1), rows, strict=True):
                places[row].copy_(whole)


def _change_rest(planes: Tensor, grey: bool, sigma: float, solarize: bool) -> None:
    """Do what follows the jitter to one crop [C, 1, h, w]."""
    if grey:
        colour.turn_grey(planes)
    if sigma >= crop.SMALLEST_SIGMA:
        different = planes[:1] if grey else planes
        crop.blur_one(different[:, 0], sigma)
        if grey:
            planes[1:] = different
    if solarize:
        colour.solarize(planes)


def _whole(planes: Tensor) -> Tensor:
    """Round in place and return the results as the low bytes of int32, which CPUs copy to uint8 quickest.

    A float32 of 2^23 or more has no bits for a fraction: the sum is rounded, and its last bits are the whole number.
    """
    return planes.add_(1 << 23).view(torch.int32)
