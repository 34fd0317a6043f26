"""The files of an ONNX export, and what each of them is worth: differences, neighbours, decisions, size, speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.export import onnx_file, onnx_speed, onnx_types
from mst.export.names import TYPES, file_name
from mst.export.network import Outputs
from mst.export.parity import Images, measure
from mst.workflows.exporting.calibration import calibration_images
from mst.workflows.exporting.decisions import Decisions, compare_decisions
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.subject import Subject

CALIBRATION_BATCH = 4
"""Images that the ranges of int8 are taken from at a time."""
THREADS = 1
"""Threads of ONNX Runtime where differences and speed are measured."""


@dataclass(frozen=True)
class Asked:
    """An ONNX export.

    Attributes:
        subject: the backbone.
        network: it with chosen outputs.
        images: that the difference is measured on.
        wanted: the outputs of this package for them.
        settings: types, calibration, comparison.
        any_size: as of `mst.export.onnx_file.make_graph`.
    """

    subject: Subject
    network: Outputs
    images: Images
    wanted: Mapping[str, Tensor]
    settings: OnnxSettings
    any_size: bool


def write_files(asked: Asked, place: Path) -> list[dict[str, Any]]:
    """Write the ONNX files that are asked for into a folder; return a row for each.

    Raises:
        MissingExtra, UsageError, RunFailure: as `mst.export.onnx_file.make_graph` and `mst.export.parity.measure`.
        DataError: there are no images to calibrate on.
    """
    onnx_file.library("onnxruntime")
    settings, subject = asked.settings, asked.subject
    calibration = calibration_images(subject, settings) if "int8" in settings.types else None
    decisions = Decisions.of(subject, settings.knn) if settings.knn else None
    graph = onnx_file.make_graph(asked.network, asked.images.pixels[:2].repeat(2, 1, 1, 1)[:2], any_size=asked.any_size)
    files = {kind: place / file_name(kind) for kind in TYPES}
    onnx_file.write_onnx(graph, files["fp32"], subject.backbone)
    if "fp16" in settings.types:
        onnx_file.write_onnx(onnx_types.half(graph), files["fp16"], subject.backbone, more={"type": "fp16"})
    if calibration is not None:
        batches = torch.split(calibration.pixels, CALIBRATION_BATCH)
        model = onnx_types.quantised(files["fp32"], batches)
        onnx_file.write_onnx(model, files["int8"], subject.backbone, more={"type": "int8"})
    if "fp32" not in settings.types:
        files["fp32"].unlink()
    rows = _measured(asked, {kind: file for kind, file in files.items() if kind in settings.types})
    for kind, row in rows.items():
        if decisions is not None and "features" in asked.wanted:
            row["knn"] = compare_decisions(decisions, files[kind])
        if kind == "int8" and calibration is not None:
            row["calibration"] = calibration.said
    return list(rows.values())


def _measured(asked: Asked, files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return of each file the differences, the bytes, the share of the same neighbours and the speed."""
    rows, pixels = {}, asked.images.pixels
    running = {kind: onnx_file.session(file, threads=THREADS) for kind, file in files.items()}
    for kind, file in files.items():
        found = onnx_file.run_session(running[kind], pixels, tuple(asked.wanted))
        parity = measure("onnx", onnx_file.runtime_name(), asked.images, asked.wanted, found, kind=kind)
        rows[kind] = {"file": file.name, **parity.to_json(), "bytes": file.stat().st_size}
        if "features" in found:
            neighbours = onnx_speed.neighbour_agreement(asked.wanted["features"], found["features"])
            rows[kind]["same_neighbour"] = neighbours
    for kind, speed in onnx_speed.speeds(running, dict.fromkeys(running, pixels[:1]), threads=THREADS).items():
        rows[kind]["speed"] = asdict(speed)
    return rows
