"""Does a training process keep its size? Memory in use after every optimizer step, by settings of the allocator.

Each contender runs in a process of its own, in turn, on the same images. What is read is the resident set of the
process at the end of each step, with everything a step needs: reading, augmenting, logging. One number after forty
steps does not tell growth from a level; the mean growth a step from the end of the warm-up on does.
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
from typing import Any

from machine import machine
from timing import StepClock
from torch.optim.optimizer import register_optimizer_step_post_hook
from train_step import write_images

import mst
from mst.config.load import override
from mst.recipes import base_config
from mst.runtime.memory import resident_memory

C_LIBRARY = {
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_ARENA_MAX": "0",
}
"""What the GNU C library starts with; a value that is set keeps the program from setting its own."""

CONTENDERS: dict[str, dict[str, str]] = {
    "as it is": {},
    "with torch's large pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "the C library's own values": C_LIBRARY,
}

DECIDING = ("recipe", "batch", "images", "held_out", "steps", "warmup", "threads")


def worker(options: argparse.Namespace) -> None:
    """Train and print the size after every step and the images/s."""
    sizes: list[float] = []
    register_optimizer_step_post_hook(lambda *_: sizes.append(resident_memory() / 1e6))
    base = base_config(options.recipe)
    config = override(
        base,
        {
            "data.train": [options.data],
            "data.held_out": options.held_out,
            "train.batch_size": options.batch,
            "train.epochs": options.steps * options.batch / (options.images - options.held_out),
            "runtime.threads": options.threads,
            "monitor.tensorboard": False,
        },
    )
    clock = StepClock()
    mst.pretrain(config, out=Path(options.out) / "run")
    rate = options.batch / statistics.median(clock.seconds(options.warmup))
    print("RESULT " + json.dumps({"megabytes": [round(size) for size in sizes], "images_per_second": rate}))


def measure(name: str, options: argparse.Namespace, data: str) -> dict[str, Any]:
    """Run a contender; return its row."""
    words = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in DECIDING]
    known = {key: value for key, value in os.environ.items() if key not in {*C_LIBRARY, "THP_MEM_ALLOC_ENABLE"}}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--worker", f"--data={data}", f"--out={out}", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=known | CONTENDERS[name], check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not answers:
        raise SystemExit(f"{name}: no result (exit {done.returncode}):\n{done.stderr[-3000:]}")
    row = json.loads(answers[-1].removeprefix("RESULT "))
    sizes = row.pop("megabytes")
    warm = sizes[options.warmup - 1]
    growth = 100 * (sizes[-1] - warm) / (len(sizes) - options.warmup)
    return {"first_gb": warm / 1e3, "last_gb": sizes[-1] / 1e3, "megabytes_per_100_steps": growth, **row}


def main() -> None:
    """Parse, run the contenders in turn, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="vit-tiny-cifar10")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--side", type=int, default=32, help="pixels of a generated image's side")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warmup", type=int, default=20, help="steps after which growth and images/s are read")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", default="", help="folder with --images images; default: generated JPEGs")
    parser.add_argument("--held-out", type=int, default=0, help="images kept apart for scores without labels")
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    with tempfile.TemporaryDirectory() as generated:
        if not options.data:
            write_images(Path(generated), options.images, (options.side, options.side))
        for _ in range(options.repetitions):
            for name in options.contenders:
                rows[name].append(measure(name, options, options.data or generated))
                print(f"{name}: {rows[name][-1]}", file=sys.stderr, flush=True)
    settings = {key: getattr(options, key) for key in (*DECIDING, "side")} | {"own_images": bool(options.data)}
    table = {"machine": machine(), "settings": settings, "rows": rows}
    print(json.dumps(table, indent=2))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
