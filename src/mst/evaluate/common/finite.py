"""NaN and infinity are refused where they arise: in features, scores and importance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mst.errors import RunFailure


def check_finite(values: Tensor, network: nn.Module, names: Sequence[str], what: str) -> None:
    """Refuse values that hold NaN or infinity.

    Args:
        values: one row for each image [B, ...].
        network: that computed them.
        names: of the images [B].
        what: the name of the values, in the plural, for the message.

    Raises:
        RunFailure: names the first layer whose weights are not finite; if all are, the first image.
    """
    good = values.flatten(1).isfinite().all(1)  # [B]
    if bool(good.all()):
        return
    largest, of = 0.0, ""
    for layer, weight in network.state_dict().items():
        if not weight.is_floating_point() or not weight.numel():
            continue
        if not math.isfinite(size := weight.abs().max().item()):  # NaN goes through the maximum
            raise RunFailure(
                f"the {what} are not finite numbers, because the weights {layer} are not: the file is damaged or its "
                "training diverged"
            )
        largest, of = max((largest, of), (size, layer))
    first = names[int((~good).nonzero()[0])]
    raise RunFailure(
        f"the {what} of {first} are not finite numbers, although the weights are (the largest is {largest:.3g}, in "
        f"{of}): the training diverged, or where the compute type is bf16, try --precision fp32"
    )
