"""What this machine, its libraries and its surroundings are good for: facts, whether each is well, and what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from mst.errors import UsageError
from mst.parallel.launch import from_environment
from mst.planning.environment import cpu_name, device_name, git_commit
from mst.runtime.device import cpu_has_bfloat16, free_memory, select_device, select_precision
from mst.version import VERSION

LIBRARIES = {"torch": (2, 6), "torchvision": (0, 21), "timm": (1, 0), "numpy": (1, 26), "pillow": (10, 3)}
"""Oldest versions, as pyproject.toml has them."""
EXTRAS = {
    "detection": ("faster_coco_eval",),
    "tiff": ("tifffile", "imagecodecs"),
    "data": ("pyarrow", "fsspec", "aiohttp"),
    "hf": ("datasets", "pyarrow"),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "transformers": ("transformers",),
}
"""Modules that an extra brings."""
LITTLE_MEMORY, LITTLE_DISK, LITTLE_SHARED = 4 * 2**30, 5 * 2**30, 2**30
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
STARTERS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Finding:
    """One fact.

    Attributes:
        about: what it is of.
        found: what was found.
        state: "ok", "warn", or "note" where it is neither.
        advice: what to do; "" = nothing.
    """

    about: str
    found: str
    state: Literal["ok", "warn", "note"] = "ok"
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at everything that often goes wrong; nothing is written, no network is used.

    Args:
        folder: where runs would go, for the disk.
    """
    parts = (_versions(), _device(), _memory(), _disk(folder), _extras(), _threads(), _started())
    return [finding for part in parts for finding in part]


def _versions() -> Iterator[Finding]:
    commit = git_commit()
    yield Finding("mst", VERSION + (f", commit {commit[:12]}" if commit else ""))
    old = sys.version_info < (3, 11)
    yield Finding(
        "Python", platform.python_version(), "warn" if old else "ok", "use Python 3.11 or later" if old else ""
    )
    for name, least in LIBRARIES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed", "warn", f"pip install {name}")
            continue
        numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdecimal())
        wanted = ".".join(map(str, least))
        yield Finding(name, found) if numbers >= least else Finding(name, found, "warn", f"needs {wanted} or later")


def _device() -> Iterator[Finding]:
    device = select_device("auto")
    _, reason = select_precision("auto", device)
    yield Finding("device", device_name(device), "ok" if device.type == "cuda" else "note", _cuda_advice(device))
    yield Finding("compute type", reason)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("CPU", f"{cores} cores to use, {cpu_name()}")
    native = cpu_has_bfloat16()
    yield Finding(
        "bfloat16 on the CPU",
        "native" if native else "not native",
        "ok" if native else "note",
        "" if native or device.type == "cuda" else "a CPU with AMX or AVX512-BF16 trains about twice as fast",
    )


def _cuda_advice(device: torch.device) -> str:
    if device.type == "cuda":
        return ""
    if torch.version.cuda is None:
        return "torch was built without CUDA: for a GPU install torch's CUDA build"
    return "torch sees no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES, if there is one"


def _memory() -> Iterator[Finding]:
    free = free_memory(torch.device("cpu"))
    little = free < LITTLE_MEMORY
    yield _sized("memory to use", free, little, "use smaller batches (--train.batch-size), or end other programs")
    device = select_device("auto")
    if device.type == "cuda":
        yield Finding("memory of the GPU", f"{free_memory(device) / 2**30:.1f} GiB free")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared)
        advice = "loader processes pass crops through it: docker run --shm-size 8g, or --runtime.workers 0"
        yield _sized("shared memory", size.free, size.free < LITTLE_SHARED, advice)
    else:
        yield Finding("shared memory", "no /dev/shm", "note", "crops go through pipes, which is slower")


def _disk(folder: Path) -> Iterator[Finding]:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield _sized(f"disk at {place}", free, free < LITTLE_DISK, "a run keeps --checkpoint.keep checkpoints: free space")
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(f"disk at {place}", "not writable", "warn", "name another place with --out")


def _sized(about: str, size: int, little: bool, advice: str) -> Finding:
    return Finding(about, f"{size / 2**30:.1f} GiB free", "warn" if little else "ok", advice if little else "")


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        said = f"without {', '.join(missing)}" if missing else "installed"
        yield Finding(
            f"extra {extra}",
            said,
            "note" if missing else "ok",
            f"pip install 'mst-pretrain[{extra}]'" if missing else "",
        )


def _threads() -> Iterator[Finding]:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    many = threads > cores
    yield Finding(
        "compute threads",
        f"{threads} of {cores} cores",
        "warn" if many else "ok",
        "more threads than cores wait for each other: unset OMP_NUM_THREADS, or --runtime.threads 0" if many else "",
    )
    found = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    if found:
        yield Finding("thread variables", " ".join(found), "note")


def _started() -> Iterator[Finding]:
    """Say how processes were started: by torchrun, srun, or not at all."""
    found = [f"{name}={os.environ[name]}" for name in STARTERS if name in os.environ]
    if not found:
        yield Finding("processes", "one: neither torchrun nor srun started this one", "note")
        return
    try:
        launch = from_environment()
    except UsageError as error:
        yield Finding("processes", " ".join(found), "warn", str(error))
        return
    said = "one process" if launch is None else f"rank {launch.rank} of {launch.size}"
    yield Finding("processes", f"{said}: {' '.join(found)}", "note")
