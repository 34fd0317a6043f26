"""Export backbones in every format, measure each in the program it is for, and write the tables of docs/export.md.

    python benchmarks/exports.py --out benchmarks/results/exports.json --docs docs/export.md

Weights are drawn at random (no bias is zero, no norm is one), images are drawn scenes: the figures say how far numbers
are apart, not what a trained network is worth. `--docs` writes what stands between two marks of that page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine

import mst
from mst.config.schema import ModelConfig
from mst.data.synthetic.scenes import make_scene
from mst.errors import MstError
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.exporting.settings import ExportSettings

BEGIN, END = "<!-- benchmarks/exports.py -->", "<!-- end of benchmarks/exports.py -->"
FORMATS = ("timm", "hf", "safetensors", "torch-export", "fp32", "fp16", "int8")


@dataclass(frozen=True)
class Case:
    """A backbone.

    Attributes:
        name: of timm.
        size: (H, W).
        channels: C.
        depth: blocks; None = the name's own.
    """

    name: str
    size: tuple[int, int]
    channels: int = 3
    depth: int | None = None


CASES = {
    "DeiT-S": Case("deit_small_patch16_224", (224, 224)),
    "DeiT-S, 1 channel": Case("deit_small_patch16_224", (224, 224), 1, 2),
    "DeiT-S, 6 channels": Case("deit_small_patch16_224", (224, 224), 6, 2),
    "DeiT-S, 12 channels": Case("deit_small_patch16_224", (224, 224), 12, 2),
    "DeiT-S, 160x256": Case("deit_small_patch16_224", (160, 256), 3, 2),
    "Swin-T": Case("swin_tiny_patch4_window7_224", (224, 224)),
    "registers": Case("vit_small_patch14_reg4_dinov2", (224, 224), 3, 2),
    "rotary (DINOv3)": Case("vit_small_patch16_dinov3", (224, 224), 3, 2),
    "attention pooling": Case("vit_base_patch16_siglip_224", (224, 224), 3, 2),
}


def write_backbone(case: Case, folder: Path) -> Path:
    """Write a backbone with drawn weights; return its file."""
    config = ModelConfig(backbone=case.name, depth=case.depth)
    backbone = build_backbone(backbone_spec(config, image_size=case.size, channels=case.channels), seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in backbone.model.parameters():
            spread = 0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
            tensor.copy_(tensor * (tensor.ndim < 2) + spread * torch.randn(tensor.shape, generator=draw))
    path = folder / "backbone.safetensors"
    save_backbone(path, backbone, {"mean": [0.5] * case.channels, "std": [0.25] * case.channels})
    return path


def write_scenes(case: Case, folder: Path, count: int) -> Path:
    """Write drawn scenes with as many channels as a backbone takes, as an array; return the file."""
    import numpy as np

    scenes = [make_scene(1, index, case.size).image for index in range(count)]  # each [3, H, W]
    images = np.stack([scene[[channel % 3 for channel in range(case.channels)]].transpose(1, 2, 0) for scene in scenes])
    path = folder / "scenes.npy"
    np.save(path, images if case.channels > 1 else images[..., 0])
    return path


def exported(case: Case) -> dict[str, Any]:
    """Return the rows of parity.json of a backbone by format, or why it has none."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, scenes = write_backbone(case, folder), write_scenes(case, folder, 32)
        for form in ("timm", "hf", "safetensors", "torch-export", "onnx"):
            onnx = OnnxSettings(("fp32", "fp16", "int8"), scenes, 16) if form == "onnx" else OnnxSettings()
            try:
                rows = mst.export_backbone(path, folder / form, form=form, settings=ExportSettings(onnx=onnx))["parity"]
            except MstError as error:
                found[form] = str(error)
                continue
            for row in rows:
                found[row["type"] if form == "onnx" else form] = row
    return found


def figure(row: Any) -> str:
    """Return a cell: the largest difference of the features, for int8 also the least cosine."""
    if not isinstance(row, dict):
        return "refused"
    one = row["outputs"]["features"]
    return f"{one['relative']:.0e}" + (f" ({one['least_cosine']:.4f})" if row["type"] == "int8" else "")


def tables(results: dict[str, dict[str, Any]], on: dict[str, Any]) -> str:
    """Return the tables of the docs in Markdown."""
    lines = [f"| backbone | {' | '.join(FORMATS)} |", "|---" * (len(FORMATS) + 1) + "|"]
    refused = []
    for name, found in results.items():
        cells = [figure(found.get(form, found.get("onnx"))) for form in FORMATS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        refused += [f"{name}, {form}: {text}" for form, text in found.items() if isinstance(text, str)]
    lines += ["", *(f"- {line}" for line in refused), ""] if refused else [""]
    lines += ["| DeiT-S | MB | images/s | slowest to fastest | passes |", "|---|---|---|---|---|"]
    for kind in ("fp32", "fp16", "int8"):
        row = results.get("DeiT-S", {}).get(kind)
        if isinstance(row, dict):
            speed = row["speed"]
            spread = f"{speed['slowest']:.1f} to {speed['fastest']:.1f}"
            cells = [
                kind,
                f"{row['bytes'] / 1e6:.1f}",
                f"{speed['images_per_second']:.1f}",
                spread,
                str(speed["passes"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    program = next(
        (
            row["program"]
            for found in results.values()
            for row in found.values()
            if isinstance(row, dict) and row["format"] == "onnx"
        ),
        "",
    )
    missing = [name for name in CASES if name not in results]
    lines += ["", f"Not measured yet: {'; '.join(missing)}."] if missing else []
    lines += ["", f"{on['processor']}, load {on['load']} of {on['cores']} cores; {program}, {versions}."]
    return "\n".join(lines)


def main() -> None:
    """Export all cases, keep the figures, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8"))["results"]
    for name in args.cases:
        if name in results:
            continue  # of an earlier call that was stopped
        begun = time.perf_counter()
        results[name] = exported(CASES[name])
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        args.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(args.out.read_text(encoding="utf-8"))
    ordered = {name: kept["results"][name] for name in CASES if name in kept["results"]}
    text = tables(ordered, kept["machine"])
    print(text)
    if args.docs:
        page = args.docs.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        args.docs.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
