"""Compare the arithmetic that a Swin-T step and a DeiT-S step get done per second: 2x224 + 6x96, bfloat16, on the CPU.

Images/s alone would compare two networks of different size, so each is multiplied by the operations that an image costs
in a training step, counted by torch on a step without arithmetic. Every repetition starts a fresh process for each, in
turn, timed as in train_step.py. Prints operations, the decoder's share of them, and the ratio with median and spread.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mst.config.schema import RunConfig
    from mst.planning.setup import Setup

HERE = Path(__file__).resolve().parent
COUNTED = 16
"""Images of the counted step: enough for stochastic depth to leave some out."""
BACKBONES = {"deit": "deit_small_patch16_224", "swin": "swin_tiny_patch4_window7_224"}


def configuration(backbone: str, images: str, *, batch: int, epochs: float = 1.0, precision: str = "bf16") -> RunConfig:
    """Return the paper's crops and objective for a backbone."""
    import mst

    settings = {
        "model.backbone": backbone, "model.prototypes": 1024, "data.train": images, "train.batch_size": batch,
        "train.epochs": epochs, "runtime.precision": precision, "runtime.device": "cpu",
    }  # fmt: skip
    return mst.load_recipe("deit-small-in1k-100ep", settings)


def decoder_flops(setup: Setup) -> int:
    """Return the operations of the image decoder in one training step, forward and backward."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    pair, size = setup.build_pair(), setup.plan.global_size
    backbone, decoder = pair.student.backbone, pair.decoder
    assert decoder is not None
    grid = (size[0] // backbone.patch_size, size[1] // backbone.patch_size)
    crops = setup.config.views.global_crops * setup.plan.batch_size
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        tokens = torch.empty(crops, grid[0] * grid[1], backbone.embed_dim, requires_grad=True)
        decoder.to_empty(device="cpu")(tokens, grid).sum().backward()
    return int(counter.get_total_flops())


def flops_per_image(backbone: str, images: str) -> dict[str, int]:
    """Return the operations of the step and of the decoder; in float32, whose operators torch's counter knows all."""
    from mst.planning.setup import prepare
    from mst.planning.simulation import step_operations

    setup = prepare(configuration(backbone, images, batch=COUNTED, precision="fp32"))
    return {"step": step_operations(setup) // COUNTED, "decoder": decoder_flops(setup) // COUNTED}


def count(args: argparse.Namespace) -> None:
    """Print the operations per image."""
    print("RESULT " + json.dumps(flops_per_image(BACKBONES[args.worker], args.data)))


def train(args: argparse.Namespace) -> None:
    """Train for `steps` steps and print the clock's report."""
    from timing import StepClock

    import mst

    epochs = args.steps * args.batch / args.images
    clock = StepClock()
    config = configuration(BACKBONES[args.worker], args.data, batch=args.batch, epochs=epochs)
    with tempfile.TemporaryDirectory() as out:
        mst.pretrain(config, out=Path(out) / "run")
    print(clock.report(args.warmup, args.batch))


def run_once(worker: str, task: str, args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Return what a fresh process reports."""
    command = [
        sys.executable, __file__, "--worker", worker, "--task", task, "--data", data, "--steps", str(args.steps),
        "--warmup", str(args.warmup), "--images", str(args.images), "--batch", str(args.batch),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"{task} of {worker} gave no result (exit {done.returncode}):\n{done.stderr[-3000:]}")


def compare(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Return operations, speeds and the ratio of operations per second, Swin-T / DeiT-S."""
    table: dict[str, Any] = {}
    for name in BACKBONES:
        flops = run_once(name, "count", args, data)
        table[name] = {"gflop_per_image": flops["step"] / 1e9, "decoder_share": flops["decoder"] / flops["step"]}
        print(f"{name}: {flops['step'] / 1e9:.1f} GFLOP an image, decoder {flops['decoder'] / flops['step']:.1%}")
    if not args.repetitions:
        return table
    speeds: dict[str, list[float]] = {name: [] for name in BACKBONES}
    for repetition in range(args.repetitions):
        for name in BACKBONES:
            speeds[name].append(float(run_once(name, "train", args, data)["images_per_second"]))
            print(f"repetition {repetition + 1}: {name} {speeds[name][-1]:.2f} images/s", file=sys.stderr, flush=True)
    work = {name: [rate * table[name]["gflop_per_image"] for rate in speeds[name]] for name in BACKBONES}
    for name in BACKBONES:
        table[name] |= {"images_per_second": spread(speeds[name]), "gflop_per_second": spread(work[name])}
    table["swin / deit"] = spread([a / b for a, b in zip(work["swin"], work["deit"], strict=True)])
    return table


def spread(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Parse, count, time, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not timed")
    parser.add_argument("--repetitions", type=int, default=3, help="0 = only count")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=None, help="write the table here")
    for hidden in ("--worker", "--task", "--data"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        (count if args.task == "count" else train)(args)
        return
    from machine import machine
    from train_step import write_images

    with tempfile.TemporaryDirectory() as data:
        write_images(Path(data), args.images, (375, 500))
        table = {"settings": {key: getattr(args, key) for key in ("steps", "warmup", "images", "batch")}}
        table |= {"machine": machine(), **compare(args, data)}
    print(json.dumps(table, indent=2))
    if args.out is not None:
        args.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
