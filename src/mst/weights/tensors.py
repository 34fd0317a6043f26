"""What an ordinary tensor is: dense, with data, of a type that networks compute in, and every number finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mst.weights.unpickling import OddTensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def oddity(value: object) -> str | None:
    """Return why a value is no dense tensor with data, as the rest of a sentence; None if it is one."""
    if isinstance(value, OddTensor):
        return f"is a {value.kind}"
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


def unusable(value: object, like: Tensor) -> str | None:
    """Return why a tensor cannot be a weight like `like`, as the rest of a sentence; None if it can.

    A weight may have any floating type of 16, 32 or 64 bits: it is converted.
    """
    if (odd := oddity(value)) is not None:
        return odd
    assert isinstance(value, Tensor)
    if like.is_floating_point() and value.dtype not in FLOATS:
        names = ", ".join(type_name(kind) for kind in FLOATS)
        return f"is of type {type_name(value.dtype)}: weights are of type {names}"
    if not like.is_floating_point() and value.dtype != like.dtype:
        return f"is of type {type_name(value.dtype)} instead of {type_name(like.dtype)}"
    found = strange_number(value.to(like.dtype))  # float64 may be beyond what is finite in float32
    return None if found is None else f"holds {found}: the network it is from was broken in its training"


def other_shapes(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> str | None:
    """Return how the shapes of tensors by name differ from a network's, with counts and examples; None if they do not.

    Args:
        found: shapes by name.
        expected: the network's.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shapes = [name for name in expected if name in found and list(found[name]) != list(expected[name])]
    problems = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    parts = [f"{len(names)} {what} (first {names[0]})" for what, names in problems.items() if names]
    return f"of {len(expected)} tensors, {', '.join(parts)}" if parts else None


def shape_of(value: object) -> list[int]:
    """Return the sizes of a tensor; none of anything else."""
    return list(getattr(value, "shape", ()))


def type_name(dtype: torch.dtype) -> str:
    """Return `float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _kinds(value: Tensor) -> dict[str, bool]:
    return {
        "meta": value.is_meta,
        "nested": value.is_nested,
        "quantised": value.is_quantized,
        "sparse": value.layout != torch.strided,
    }
