"""What a benchmark ran on, for the file that keeps its figures."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mst.planning.environment import git_commit

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "faiss-cpu")


def machine() -> dict[str, Any]:
    """Return processor, cores, versions, commit and CUDA device."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := version_of(name))},
        "commit": git_commit(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "not measured",
    }


def processor() -> str:
    """Return the model's name as Linux knows it, else what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    known = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    names = [known.get(key) for key in ("model name", "cpu family", "model")]
    if all(names):
        return f"{names[0]}, family {names[1]} model {names[2]}"
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
