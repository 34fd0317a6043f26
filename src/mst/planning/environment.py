"""What a run ran on: versions, commit, device, compute type."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mst.version import VERSION

PACKAGES = ("torchvision", "timm", "numpy", "pillow", "pydantic", "safetensors")


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return what goes into environment.json.

    Args:
        device: where the networks are.
        precision: the compute type and the reason for it.
    """
    return {
        "mst": VERSION,
        "commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "precision": precision,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """Return `cpu`, or the CUDA device with its model."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def git_commit() -> str | None:
    """Return the commit that this package runs from, with `-dirty` after local changes; None outside a checkout."""
    package = Path(__file__).parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root) / "src" / "mst" != package:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *words: str) -> str | None:
    """Run git and return what it says, or None when it cannot."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
