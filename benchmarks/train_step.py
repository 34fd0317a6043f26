"""Compare training steps on one machine: full MST, the same step without masking and decoder, and lightly-train's DINO.

Each repetition starts a fresh process per contender, in turn (A B C A B C ...), so that a drift of the machine's speed
hits all alike. Everything a step needs is included: decoding, augmentation, logging. Prints images/s, peak memory and
the ratios with median and spread. lightly-train (AGPL) runs in its own environment and process: make one with
`python3 -m venv DIR && DIR/bin/pip install lightly-train timm` and name it with --lightly-python DIR/bin/python.
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

HERE = Path(__file__).resolve().parent
SETTINGS: dict[str, dict[str, Any]] = {
    "deit-small-224": {
        "model": "deit_small_patch16_224", "global": 224, "local": 96, "locals": 6, "batch": 16,
        "image": (375, 500), "model_args": {},
    },
    "vit-tiny-32": {
        "model": "vit_tiny_patch16_224", "global": 32, "local": 16, "locals": 4, "batch": 128,
        "image": (32, 32), "model_args": {"patch_size": 4},
    },
}  # fmt: skip


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write `count` textured JPEGs: smooth noise at several scales, so that decoding costs what photographs cost."""
    import torch
    import torch.nn.functional as F
    from torchvision.io import write_jpeg

    for index in range(count):
        noise = torch.Generator().manual_seed(index)
        image = sum(
            F.interpolate(
                torch.rand(1, 3, size[0] // cell + 2, size[1] // cell + 2, generator=noise), size=size, mode="bicubic"
            )
            * weight
            for cell, weight in ((64, 0.5), (16, 0.3), (4, 0.2))
        )
        assert isinstance(image, torch.Tensor)
        write_jpeg(image[0].clamp(0, 1).mul(255).byte(), str(folder / f"{index:05d}.jpg"), quality=90)


def mst_worker(args: argparse.Namespace) -> None:
    """Train with mst for `steps` steps and print the clock's report."""
    from timing import StepClock

    import mst
    from mst.config import schema

    s = SETTINGS[args.setting]
    plain = args.worker == "mst-dino"
    config = schema.RunConfig(
        recipe=f"benchmark {args.setting}",
        data=schema.DataConfig(train=(args.data,)),
        views=schema.ViewsConfig(global_size=s["global"], local_size=s["local"], local_crops=s["locals"]),
        model=schema.ModelConfig(backbone=s["model"], prototypes=args.prototypes, **s["model_args"]),
        objective=schema.ObjectiveConfig(
            strategy="none" if plain else "attention_low", restoration_weight=0.0 if plain else 0.6
        ),
        train=schema.TrainConfig(
            batch_size=s["batch"],
            epochs=float(args.steps * s["batch"]) / args.images,
            accumulate=args.accumulate,
        ),
        runtime=schema.RuntimeConfig(precision=args.precision),
    )
    clock = StepClock()
    mst.pretrain(config, out=Path(args.out) / "run")
    print(clock.report(args.warmup, s["batch"]))


def lightly_worker(args: argparse.Namespace) -> None:
    """Train lightly-train's DINO with the same shapes and print the clock's report."""
    import lightly_train
    from timing import StepClock

    s = SETTINGS[args.setting]
    clock = StepClock()
    model_args = {"img_size": s["global"], **s["model_args"]} if s["model_args"] else {}
    lightly_train.pretrain(
        out=str(Path(args.out) / "run"),
        data=args.data,
        model=f"timm/{s['model']}",
        model_args={"dynamic_img_size": True, **model_args},
        method="dino",
        method_args={"output_dim": args.prototypes},
        epochs=max(1, args.steps * s["batch"] // args.images),
        batch_size=s["batch"],
        precision={"bf16": "bf16-mixed", "fp32": "32-true", "auto": "auto"}[args.precision],
        accelerator="cpu" if args.cpu else "auto",
        transform_args={
            "image_size": (s["global"], s["global"]),
            "local_view": {"num_views": s["locals"], "view_size": (s["local"], s["local"])},
        },
        overwrite=True,
    )
    print(clock.report(args.warmup, s["batch"]), flush=True)


def run_once(worker: str, python: str, args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Run one contender in a fresh process; return its report."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            python, __file__, "--worker", worker, "--data", data, "--out", out, "--setting", args.setting, "--steps",
            str(args.steps), "--warmup", str(args.warmup), "--images", str(args.images), "--precision", args.precision,
            "--prototypes", str(args.prototypes), "--accumulate", str(args.accumulate),
            *(["--cpu"] if args.cpu else []),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}" if worker != "lightly" else str(HERE),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"{worker} gave no result (exit {done.returncode}):\n{done.stderr[-3000:]}")


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians and spreads per contender and the ratios against full MST, repetition by repetition."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    table: dict[str, Any] = {
        name: {key: spread([float(r[key]) for r in reps]) for key in ("images_per_second", "peak_memory_gb")}
        for name, reps in rows.items()
    }
    for name in rows.keys() - {"mst"}:
        pairs = list(zip(rows["mst"], rows[name], strict=True))
        table[f"mst / {name}"] = {
            key: spread([float(a[key]) / float(b[key]) for a, b in pairs])
            for key in ("images_per_second", "peak_memory_gb")
        }
    return table


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the figures."""
    hidden = {"worker", "data", "out", "json", "lightly_python"}
    return {key: value for key, value in vars(args).items() if key not in hidden}


def main() -> None:
    """Parse, run the contenders in turn, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--setting", choices=SETTINGS, default="deit-small-224")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="bf16")
    parser.add_argument("--prototypes", type=int, default=1024)
    parser.add_argument("--accumulate", type=int, default=1, help="passes of an optimizer step of mst: less memory")
    parser.add_argument("--without-dino", action="store_true", help="leave out the step without masking and decoder")
    parser.add_argument("--cpu", action="store_true", help="keep lightly-train on the CPU")
    parser.add_argument("--lightly-python", default="", help="python of an environment with lightly-train")
    parser.add_argument("--json", default="", help="write the table here")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--data", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        (lightly_worker if args.worker == "lightly" else mst_worker)(args)
        return
    from machine import machine

    contenders = {"mst": sys.executable}
    if not args.without_dino:
        contenders["mst-dino"] = sys.executable
    if args.lightly_python:
        contenders["lightly"] = args.lightly_python
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as data:
        write_images(Path(data), args.images, SETTINGS[args.setting]["image"])
        for repetition in range(args.repetitions):
            for name, python in contenders.items():
                rows[name].append(run_once(name, python, args, data))
                print(f"repetition {repetition + 1}: {name} {rows[name][-1]}", file=sys.stderr, flush=True)
    table = {
        "setting": args.setting,
        "machine": machine(),
        "settings": settings_of(args),
        **summary(rows),
    }
    print(json.dumps(table, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
