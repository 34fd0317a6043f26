"""What a run ran on: versions, commit, device, compute type."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mst.version import VERSION

PACKAGES = ("torchvision", "timm", "numpy", "pillow", "pydantic", "safetensors")

EARLIER, UNTIL = "earlier", "until_step"
"""Keys in environment.json: records of earlier steps, and in each the step at which it ends."""


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
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{name: _version(name) for name in PACKAGES},
    }


def continued(now: Mapping[str, Any], path: Path, *, step: int, last: int) -> dict[str, Any]:
    """Return the environment of a run that goes on at a step, with those that its earlier steps had.

    Where they differ from that of now they stand under `earlier`, oldest first, each with `until_step`: the step at
    which the next one took over. A run that has no step left keeps what it has.

    Args:
        now: from `describe_environment`.
        path: environment.json of the run; missing or damaged, nothing is known of earlier steps.
        step: steps done.
        last: steps of the whole run.
    """
    former = _read_object(path)
    if former and step >= last:
        return former
    known = former.pop(EARLIER, [])
    rows = [*(known if isinstance(known, list) else []), {UNTIL: step, **former}] if former else []
    earlier: list[dict[str, Any]] = []
    for row in rows:
        until = row.get(UNTIL) if isinstance(row, dict) else None
        reached = earlier[-1][UNTIL] if earlier else 0
        if isinstance(until, int) and min(until, step) > reached:  # it made steps that still count
            earlier.append({**row, UNTIL: min(until, step)})
    if earlier and {**now, UNTIL: earlier[-1][UNTIL]} == earlier[-1]:
        del earlier[-1]
    return {**now, EARLIER: earlier} if earlier else dict(now)


def device_name(device: torch.device) -> str:
    """Return `cpu`, or the CUDA device with its model."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def cpu_name() -> str:
    """Return the processor's model, where the system says it, and the instructions that torch uses on it.

    Processors of one model may be given different instructions by a virtual machine, and torch rounds otherwise with
    each: numbers of two runs can be equal to the last digit only where both are.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or not mounted
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return ", ".join(filter(None, (model or platform.processor(), torch.backends.cpu.get_cpu_capability())))


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


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file, empty where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
