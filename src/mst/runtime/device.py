"""Which device and which compute type, and why; and how batches get to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mst.errors import UsageError
from mst.runtime.memory import available_memory

Precision = Literal["auto", "fp32", "bf16"]
"""The compute type that is asked for: `auto` is bfloat16 where the device has matrix units for it."""

Raw = TypeVar("Raw")
Made = TypeVar("Made")


def select_device(name: str, *, flag: str = "--runtime.device") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `flag` is the option that named it, for the message.

    A CUDA device always has a number. Without one, torch would use the current device of each thread, which is 0 in a
    new thread.

    Raises:
        UsageError: the name is unknown or the device is not there.
    """
    if name == "auto":
        return _numbered(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{flag} {name}: use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"{flag} {name}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"{flag} {name}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return _numbered(device)


def _numbered(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that this process can still have on a device."""
    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def select_precision(asked: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the compute type and the reason in one line; parameters are float32 in any case."""
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


def set_float32_products(device: torch.device, dtype: torch.dtype) -> str:
    """Let CUDA round float32 factors to TF32 in a training whose compute type has fewer digits anyway.

    Returns:
        What was set, as an addition to the reason of the compute type; "" on a CPU, where nothing is set.
    """
    if device.type != "cuda":
        return ""
    short = dtype == torch.bfloat16
    torch.set_float32_matmul_precision("high" if short else "highest")
    torch.backends.cudnn.allow_tf32 = short
    return "; float32 products in TF32" if short else "; products in full float32, without TF32"


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices natively (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; from the CPU to CUDA it is copied from pinned memory, and nobody waits for that."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def staged(prepare: Callable[[Raw], Made], device: torch.device) -> Callable[[Raw], Made]:
    """Return a function that does the work of `prepare` on a CUDA stream of its own; on a CPU, `prepare` itself.

    So the work does not queue behind the steps. It is finished when the call returns. Called in another thread than the
    steps, one batch ahead (`mst.engine.feeder`), copying and colouring take place during a step.

    Args:
        prepare: brings a batch to the device (with `to_device`); returns tensors in tuples, lists or dictionaries.
        device: where to.
    """
    if device.type != "cuda":
        return prepare
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on_own_stream(batch: Raw) -> Made:
        with torch.cuda.stream(stream):
            made = prepare(batch)
        stream.synchronize()
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                tensor.record_stream(torch.cuda.default_stream(device))  # where it is read until it is freed
        return made

    return on_own_stream
