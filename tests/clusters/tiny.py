"""A pre-training of seconds for tests of several processes, and what they look at and do to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clusters.waiting import wait_for
from commands.test_kill_resume import SETTINGS, outcome, steps_done
from data.pictures import write_textures

__all__ = ["outcome", "steps_done"]
Popen = subprocess.Popen[bytes]
BATCH, IMAGES = 8, 40
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def write_recipe(folder: Path, *, steps: int) -> Path:
    """Write images and settings; return the file of settings. A step takes some 30 ms, checkpoints come every 20."""
    write_textures(folder / "images", IMAGES, size=24)
    settings = {
        **SETTINGS,
        "data": {"train": [str(folder / "images")]},
        "train": {"batch_size": BATCH, "epochs": steps / (IMAGES // BATCH)},
        "checkpoint": {"every_steps": 20},
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(settings))
    return path


def pretrain(recipe: Path, run: Path) -> list[str]:
    """Return the words of a run that starts or goes on."""
    return ["-m", "mst", "pretrain", str(recipe), "--out", str(run), "--continue"]


def wait_for_step(
    run: Path, step: int, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Wait until the run has written the row of a step."""
    wait_for(
        lambda: steps_done(run) >= step or (process is not None and process.poll() is not None),
        lambda: log.read_text() if log else f"step {steps_done(run)}",
    )
    if process is not None:
        assert process.poll() is None, log.read_text() if log else "it ended"


def last_step(run: Path) -> int:
    """Return the step of the newest row, from the end of the file alone; 0 = none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            found = re.findall(rb'^\{"step": (\d+)', file.read(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def variables(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in os.fsdecode(text).split("\0") if "=" in item)


def processes(mark: str) -> dict[int, str]:
    """Return pid -> rank ("" if it has none) of all processes that were started with MST_TEST_MARK=mark."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    found = {pid: variables(pid) for pid in pids if pid != os.getpid()}
    return {
        pid: own.get("RANK", own.get("SLURM_PROCID", "") if "SLURM_STEP_ID" in own else "")
        for pid, own in found.items()
        if own.get("MST_TEST_MARK") == mark
    }


def rank_of(mark: str, rank: int) -> int:
    """Return the process id of a rank: the oldest of those with its number, others are its workers."""
    return min(pid for pid, own in processes(mark).items() if own == str(rank))


@contextmanager
def torchrun(*words: str, log: Path, mark: str) -> Iterator[Popen]:
    """Run torchrun's agent inside the block; whatever is left at its end is killed."""
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **ENVIRONMENT, "MST_TEST_MARK": mark}
        )
    try:
        yield process
    finally:
        for pid in (process.pid, *processes(mark)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
