"""Compare the features of images with a bare timm forward loop: same network, same batches, same precision.

Ours is `extract_features` as every evaluation calls it: uint8 images through the evaluation transform, read ahead by
threads, unreadable ones watched for. The bare loop gets tensors that are ready. Each repetition runs both in fresh
processes, in turn; prints images per second with median and spread, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine

HERE = Path(__file__).resolve().parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pixels(count: int, size: int) -> torch.Tensor:
    """Return uint8 images [count, 3, size, size]."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


def ours(args: argparse.Namespace) -> float:
    """Return the seconds that mst takes."""
    from mst.evaluate.common.features import FeatureSettings, extract_features
    from mst.evaluate.common.image_sets import ImageSet
    from mst.evaluate.common.protocol import ImageTransform
    from mst.model.backbone import BackboneSpec
    from mst.model.build import build_backbone

    spec = BackboneSpec(args.model, (args.size, args.size), 3, 16)
    backbone = build_backbone(spec).eval().to(args.device)
    images = ImageSet.from_tensors(list(pixels(args.images, args.size)), [0] * args.images)
    transform = ImageTransform((args.size, args.size))
    settings = FeatureSettings(args.batch, args.workers, args.precision, progress=False)
    extract_features(backbone, images.subset(range(args.batch)), transform, settings=settings)
    begin = time.perf_counter()
    extract_features(backbone, images, transform, settings=settings)
    return time.perf_counter() - begin


def bare(args: argparse.Namespace) -> float:
    """Return the seconds that timm's model takes in the plainest loop."""
    import timm

    model = timm.create_model(args.model, img_size=args.size, num_classes=0).eval().to(args.device)
    images = pixels(args.images, args.size).float() / 255
    dtype = DTYPES[args.precision]
    with torch.no_grad(), torch.autocast(args.device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(images[: args.batch].to(args.device))
        begin = time.perf_counter()
        parts = (images[start : start + args.batch] for start in range(0, args.images, args.batch))
        found = [model(part.to(args.device)).float().cpu() for part in parts]
        assert len(torch.cat(found)) == args.images
        return time.perf_counter() - begin


WORKERS = {"mst": ours, "timm": bare}


def run_once(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Run one contender in a fresh process."""
    own = ("model", "size", "images", "batch", "workers", "precision", "device")
    command = [sys.executable, __file__, f"--worker={name}", *(f"--{key}={getattr(args, key)}" for key in own)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"{name} gave no result (exit {done.returncode}):\n{done.stderr[-2000:]}")


def spread(values: list[float]) -> dict[str, float]:
    """Return median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Run the contenders in turn; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="threads that prepare images, ours only")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", default="", help="write the table here")
    parser.add_argument("--worker", choices=["", *WORKERS], default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        cpu = time.process_time()
        rate = args.images / WORKERS[args.worker](args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {"images_per_second": rate, "cpu_seconds": time.process_time() - cpu, "peak_memory_gb": peak}
        print("RESULT " + json.dumps(row))
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in WORKERS}
    for repetition in range(args.repetitions):
        for name, done in rows.items():
            done.append(run_once(name, args))
            print(f"repetition {repetition + 1}: {name} {done[-1]}", file=sys.stderr, flush=True)
    ratios = [a["images_per_second"] / b["images_per_second"] for a, b in zip(rows["mst"], rows["timm"], strict=True)]
    table = {
        "settings": {key: value for key, value in vars(args).items() if key not in {"json", "worker"}},
        "machine": machine(),
        "threads": torch.get_num_threads(),
        **{name: {key: spread([row[key] for row in done]) for key in done[0]} for name, done in rows.items()},
        "mst / timm": {"images_per_second": spread(ratios)},
    }
    print(json.dumps(table, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
