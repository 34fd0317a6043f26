"""`mst export`: the backbone in a form that other tools load, measured there against the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText, SourceText
from mst.runtime.logging import info
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.workflows.export import export_backbone
from mst.workflows.exporting.model import export_model
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.exporting.settings import ExportSettings, parse_list


@dataclass(frozen=True)
class ExportOptions:
    """Write a network in a form that other tools load, and measure the difference in that tool (parity.json)."""

    backbone: SourceText = ""
    """A run folder or a backbone file: the backbone alone."""
    model: PathText = ""
    """The folder of a trained network, as of mst predict: with its head and the names of its classes."""
    out: PathText = ""
    """New folder."""
    format: str = "timm"
    """timm: timm.create_model("local-dir:FOLDER", pretrained=True). hf: transformers' AutoModel, AutoImageProcessor and
    pipelines. onnx: ONNX Runtime, without torch. torch-export: torch.export.load. safetensors: weights and a JSON."""
    images: PathText = ""
    """Images on which the difference is measured; without, those of the backbone's run, else drawn scenes."""
    outputs: str = ""
    """Of onnx and torch-export, with commas: features [B, D] (alone if none are named), patch_tokens [B, N, D],
    importance [B, N], cls_token [B, D]. Of a classifier also logits, probabilities [B, K] (both if none are named)."""
    any_size: bool = False
    """Of onnx: images of every size that patches tile."""
    preprocess: bool = False
    """Of onnx: the graph takes stored pixels of any size, uint8 [B, H, W, C], resizes and cuts them."""
    types: str = "fp32"
    """Of onnx, with commas: fp32, fp16 (half the size), int8 (a quarter; its products are of 8 bits)."""
    calibration: PathText = ""
    """Of int8: images like those it will see; the ranges of its numbers are taken from them."""
    calibration_images: int = 64
    """How many of them are used, drawn by the seed."""
    knn: PathText = ""
    """Of onnx: labelled images, as for `mst evaluate knn`: how many of its decisions stay the same is measured."""
    seed: int = 0
    """Of the draw of calibration images."""
    license: str = "other"
    """Of hf: the licence of the weights, for the model card."""
    push: str = ""
    """Of hf: USER/NAME on the hub, to upload the folder to, with your login there."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(ExportOptions, argv, prog="mst export")
    if options is None:
        return 0
    for name in ("backbone or --model", "out"):
        if not any(getattr(options, one) for one in name.split(" or --")):
            raise UsageError(f"--{name} is missing: mst export --backbone RUN --format timm --out FOLDER")
    if options.backbone and options.model:
        raise UsageError("give one of --model and --backbone: a trained network with its head, or the backbone alone")
    settings = ExportSettings(
        options.images or None,
        parse_list(options.outputs, "--outputs") if options.outputs else (),
        options.any_size,
        options.license,
        options.push or None,
        OnnxSettings(
            parse_list(options.types, "--types"),
            options.calibration or None,
            options.calibration_images,
            options.knn or None,
            options.seed,
            options.preprocess,
        ),
    )
    if options.model:
        result = export_model(options.model, options.out, form=options.format, settings=settings)
    else:
        result = export_backbone(options.backbone, options.out, form=options.format, settings=settings)
    if options.json:
        emit_json(result)
        return 0
    for row in result["parity"]:
        emit(Text(_told(row)))
    for remark in result["remarks"]:
        info(remark)
    emit(Text(result["use"]))
    return 0


def _told(row: dict[str, Any]) -> str:
    """Return a line on one measured file."""
    names = ", ".join(f"{name.replace('_', ' ')} {one['relative']:.1e}" for name, one in row["outputs"].items())
    same = {"same_label": "labels", "same_pixels": "classes of pixels", "same_objects": "objects"}
    more = "".join(f"; {word} the same for {row[key]:g} %" for key, word in same.items() if key in row)
    if "speed" in row:
        speed = row["speed"]
        threads = "a thread" if speed["threads"] == 1 else f"on {speed['threads']} threads"
        more += (
            f"; {row['bytes'] / 1e6:.1f} MB, {speed['images_per_second']:.1f} ({speed['slowest']:.1f} to "
            f"{speed['fastest']:.1f}) images/s {threads}"
        )
    if "same_neighbour" in row:
        more += f", nearest neighbour the same for {row['same_neighbour']:.0f} %"
    if "knn" in row:
        found = row["knn"]
        more += (
            f"; k-NN decides the same for {found['agreement']:.1f} % of {found['val_images']} images, top-1 "
            f"{found['top1']:.1f} (backbone {found['top1_backbone']:.1f})"
        )
    return (
        f"{row.get('file', row['format'])} ({row['type']}): differs by {names} of the largest, measured in "
        f"{row['program']} on {row['count']} images: {row['images']}{more}"
    )
