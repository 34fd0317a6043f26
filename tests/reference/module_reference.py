"""Ways to prove what an initialisation touches."""

from __future__ import annotations

import torch
from torch import nn


def fill_with_nan(module: nn.Module) -> None:
    """Overwrite every floating-point parameter and buffer, persistent or not, with NaN."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
