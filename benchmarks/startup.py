"""How long a user waits: for `mst --help`, and from `mst pretrain` to the end of the first training step.

Fresh processes, wall-clock seconds. The first step is seen from outside: its row appears in metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

from views import photograph_files

POLL = 0.02
SMALL_STEPS = ("--train.batch-size", "8", "--monitor.every-steps", "1")
"""A step of the big network that is over soon, as its start is what is measured."""


def seconds_of_help() -> float:
    """Return the seconds that `mst --help` takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mst", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def seconds_to_first_step(recipe: str, images: Path, out: Path) -> float:
    """Return the seconds from the start of `mst pretrain` to its first row of metrics; then end it."""
    words = ["pretrain", recipe, "--data.train", str(images), "--out", str(out), *SMALL_STEPS]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mst", *words], stderr=subprocess.DEVNULL)
    try:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and '"loss"' in metrics.read_text(encoding="utf-8")):
            if process.poll() not in (None, 0):
                raise SystemExit(f"mst {' '.join(words)} ended with status {process.returncode}")
            time.sleep(POLL)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of photographs; default: 64 generated JPEGs of 500x375")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"mst --help": [], "debug, first step": [], "DeiT-S, first step": []}
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images
        if images is None:
            images = Path(folder) / "images"
            images.mkdir()
            photograph_files(images, 64)
        for repetition in range(arguments.repetitions):
            run = Path(folder) / f"run{repetition}"
            seconds["mst --help"].append(seconds_of_help())
            seconds["debug, first step"].append(seconds_to_first_step("debug", images, run))
            seconds["DeiT-S, first step"].append(seconds_to_first_step("deit-small-in1k-100ep", images, run))
    for name, values in seconds.items():
        print(f"{name:24} {statistics.median(values):6.2f} s  ({min(values):.2f} - {max(values):.2f})")
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine(), "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
