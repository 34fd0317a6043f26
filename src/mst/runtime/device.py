"""Which device and which compute type, and why."""

from __future__ import annotations

from typing import Literal

import torch

from mst.errors import UsageError
from mst.runtime.memory import available_memory

Precision = Literal["auto", "fp32", "bf16"]
"""The compute type that is asked for: `auto` is bfloat16 where the device has matrix units for it."""


def select_device(name: str, *, flag: str = "--runtime.device") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `flag` is how the user gave it.

    Raises:
        UsageError: the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{flag} {name}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"{flag} {name}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"{flag} {name}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return device


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that this process can still have on a device."""
    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def select_precision(asked: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the compute type and one line saying why; parameters stay float32 either way."""
    if asked == "fp32":
        return torch.float32, "float32: asked for"
    if asked == "bf16":
        return torch.bfloat16, "bfloat16: asked for"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "bfloat16: this CUDA device has bfloat16 matrix units"
        return (
            torch.float32,
            "float32: this CUDA device has no bfloat16 matrix units (compute capability below 8.0)",
        )
    if cpu_has_bfloat16():
        return torch.bfloat16, "bfloat16: this CPU has bfloat16 matrix instructions"
    return torch.float32, "float32: this CPU has no bfloat16 matrix instructions"


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices natively (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
