"""What an ordinary tensor is: dense, with data, of a type that networks compute in, and every number finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def oddity(value: object) -> str | None:
    """Return why something is no dense tensor that holds its data, as the rest of a sentence; None if it is one."""
    if not isinstance(value, Tensor):
        return f"is {type(value).__name__}, not a tensor"
    kind = next((word for word, found in _kinds(value).items() if found), None)
    if kind is not None:
        return f"is a {kind} tensor"
    needed = 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    if value.numel() and (value.storage_offset() + needed) * value.element_size() > value.untyped_storage().nbytes():
        return "has less data than its shape says"
    return None


def strange_number(value: Tensor) -> str | None:
    """Return "NaN" or "infinity" if a dense tensor holds one, else None."""
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return None
    real = torch.view_as_real(value) if value.is_complex() else value
    least, most = (number.item() for number in torch.aminmax(real.detach()))
    if math.isnan(least):  # aminmax hands it through
        return "NaN"
    return "infinity" if float("inf") in {-least, most} else None


def _kinds(value: Tensor) -> dict[str, bool]:
    return {
        "meta": value.is_meta,
        "nested": value.is_nested,
        "quantised": value.is_quantized,
        "sparse": value.layout != torch.strided,
    }
