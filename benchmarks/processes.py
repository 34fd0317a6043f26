"""What several processes cost: DeiT-S steps by 2 processes of one thread beside one process with 2 replicas.

Contenders run in turn in fresh processes (A B A B ...), each a whole `mst pretrain` on generated JPEGs, timed
by the rows that it writes. With `--before DIR` the `src` of another checkout is a third one: one process.
Prints images per second with median and spread, and the ratio of each repetition.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine
from train_step import write_images

SOURCE = Path(__file__).resolve().parent.parent / "src"
ONE, TWO, BEFORE = "one process", "2 processes", "one process, before"
IMAGES, SIZE = 64, (375, 500)


def rate(source: Path, processes: int, images: Path, settings: argparse.Namespace) -> float:
    """Return images per second of the steps after the warm-up, from the seconds in the rows of a run."""
    steps, batch = settings.warmup + settings.steps, settings.batch
    words = ["--data.train", images, "--train.batch-size", batch, "--model.prototypes", 4096]
    words += ["--train.epochs", steps * batch / IMAGES, "--monitor.every-steps", 1, "--runtime.precision", "bf16"]
    words += ["--runtime.processes", processes] if processes > 1 else []
    threads = {} if processes == 1 else {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "mst", "pretrain", "deit-small-in1k-100ep", "--out", f"{folder}/run", *map(str, words)]
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": str(source), **threads},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    return float(batch * settings.steps / (seconds[-1] - seconds[-1 - settings.steps]))


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> None:
    """Parse, run the contenders in turn, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, help="the `src` of another checkout: one process through its code")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    settings = parser.parse_args()
    contenders = {ONE: (SOURCE, 1), TWO: (SOURCE, 2)}
    if settings.before:
        contenders[BEFORE] = (settings.before, 1)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as images:
        write_images(Path(images), IMAGES, SIZE)
        for repetition in range(settings.repetitions):
            for name, (source, processes) in contenders.items():
                found[name].append(rate(source, processes, Path(images), settings))
                print(f"repetition {repetition + 1}: {name} {found[name][-1]:.2f} images/s", flush=True)
    table = {name: spread(values) for name, values in found.items()}
    for name in found.keys() - {ONE}:
        over, under = (ONE, name) if name == BEFORE else (name, ONE)
        table[f"{over} / {under}"] = spread([a / b for a, b in zip(found[over], found[under], strict=True)])
    for name, values in table.items():
        print(f"{name:32s} {values['median']:.3f}  ({values['lowest']:.3f} - {values['highest']:.3f})")
    if settings.out:
        settings.out.write_text(json.dumps({"machine": machine(), "images/s and ratios": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
