"""Compare the memory that `mst plan` expects with the memory that training takes, for ten set-ups.

Each figure comes from a process of its own: one that only estimates, one that only trains for three steps on crops of
noise. Measured is the largest resident size minus the size before the networks were built, so that Python and its
libraries are not counted; the estimate is `mst plan`'s without them. CPUs only. Prints estimate, measured and ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).resolve().parent
STEPS, IMAGES = 3, 128
SETUPS: dict[str, dict[str, object]] = {
    "vit-tiny-cifar10": {"recipe": "vit-tiny-cifar10", "train.batch_size": 128},
    "deit-small, 2x128, batch 16": {
        "model.backbone": "deit_small_patch16_224", "views.global_size": 128, "views.local_crops": 0,
        "train.batch_size": 16,
    },
    "swin-tiny, 2x128 + 4x64, batch 8": {
        "model.backbone": "swin_tiny_patch4_window7_224", "views.global_size": 128, "views.local_size": 64,
        "views.local_crops": 4, "train.batch_size": 8,
    },
    "deit-small, 2x224 + 6x96, batch 8": {"model.backbone": "deit_small_patch16_224", "train.batch_size": 8},
    "debug, batch 8": {"recipe": "debug"},
    "debug, batch 128": {"recipe": "debug", "train.batch_size": 128},
    "deit-tiny, 2x224 + 6x96, batch 4": {"model.backbone": "deit_tiny_patch16_224", "train.batch_size": 4},
    "deit-tiny, 2x224 + 6x96, batch 32": {"model.backbone": "deit_tiny_patch16_224", "train.batch_size": 32},
    "deit-small, 2x224 + 6x96, batch 32": {"model.backbone": "deit_small_patch16_224", "train.batch_size": 32},
    "vit-tiny, BatchNorm, 2x64, batch 128": {
        "model.backbone": "deit_tiny_patch16_224", "views.global_size": 64, "views.local_crops": 0,
        "train.batch_size": 128, "model.head_norm": "batch",
    },
}  # fmt: skip


def worker(task: str, name: str, images: str) -> None:
    """Print the bytes of one set-up, estimated or measured."""
    import mst
    from mst.planning.estimate import networks_memory, process_memory
    from mst.planning.setup import prepare
    from mst.planning.simulation import random_views
    from mst.train.schedule import step_values
    from mst.train.state import new_state
    from mst.train.step import train_step

    changes = {"recipe": "deit-small-in1k-100ep", "model.prototypes": 1024, **SETUPS[name], "data.train": images}
    setup = prepare(mst.load_recipe(str(changes.pop("recipe")), changes))
    if task == "estimate":
        print("RESULT", json.dumps(networks_memory(setup)))
        return
    before = process_memory()
    state = new_state(setup.build_pair(), setup.config, setup.plan)
    for step in range(STEPS):
        values = step_values(setup.plan, setup.config, step)
        views = [random_views(setup, setup.plan.batch_size_per_pass)]
        train_step(state, views, values, setup.config, setup.plan, dtype=setup.precision)
    print("RESULT", json.dumps(process_memory(largest=True) - before))


def run_once(task: str, name: str, images: str) -> int:
    """Return what a fresh process prints."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    command = [sys.executable, __file__, "--worker", task, "--setup", name, "--images", images]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return int(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"{task} of {name} gave no result (exit {done.returncode}):\n{done.stderr[-3000:]}")


def main() -> None:
    """Parse, run the set-ups one after another, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="part of a set-up's name")
    parser.add_argument("--out", type=Path, default=None, help="write the table here")
    for hidden in ("--worker", "--setup", "--images"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.setup, args.images)
        return
    table: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        write = (
            "from pathlib import Path; from mst.data.synthetic.scenes import write_scene_folder as w; "
            f"w(Path({folder!r}), "
        )
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
        subprocess.run([sys.executable, "-c", f"{write}{{'train': {IMAGES}}}, 64)"], env=environment, check=True)
        for name in [name for name in SETUPS if args.only in name]:
            estimate, measured = (run_once(task, name, f"{folder}/train") for task in ("estimate", "measure"))
            table[name] = {"estimate": estimate, "measured": measured, "ratio": estimate / measured}
            print(f"{name:40} {estimate / 1e6:8.0f} MB {measured / 1e6:8.0f} MB {estimate / measured:6.2f}", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
