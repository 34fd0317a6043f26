"""The files of an ONNX export, and what each of them is worth: differences, neighbours, decisions, size, speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.export import onnx_file, onnx_speed, onnx_types
from mst.export.names import TYPES, file_name
from mst.export.network import Outputs, expected
from mst.export.onnx_images import with_preprocessing
from mst.export.parity import Images, measure
from mst.workflows.exporting.calibration import CalibrationImages, calibration_images
from mst.workflows.exporting.decisions import Decisions, compare_decisions
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.exporting.raw_images import RawImages
from mst.workflows.subject import Subject

CALIBRATION_BATCH = 4
"""Images that the ranges of int8 are taken from at a time."""
OTHER = 4
"""Images that other sizes are measured on."""
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
    files = {kind: place / file_name(kind) for kind in TYPES}
    models = _models(asked, files["fp32"], calibration)
    raw = RawImages.of(subject, asked.images) if settings.preprocess else None
    for kind, model in models.items():
        said = {"type": kind, **({} if raw is None else {"metadata": raw.metadata})}
        joined = model if raw is None else with_preprocessing(model, raw.graph)
        onnx_file.write_onnx(joined, files[kind], subject.backbone, more=said)
    if "fp32" not in models:
        files["fp32"].unlink(missing_ok=True)
    rows = _measured(asked, {kind: files[kind] for kind in models}, raw)
    for kind, row in rows.items():
        if decisions is not None and "features" in asked.wanted:
            row["knn"] = compare_decisions(decisions, files[kind])
        if kind == "int8" and calibration is not None:
            row["calibration"] = calibration.said
    return list(rows.values())


def _models(asked: Asked, source: Path, calibration: CalibrationImages | None) -> dict[str, Any]:
    """Return the model of each type that is asked for; `source` is where the one in fp32 lies meanwhile."""
    graph = onnx_file.make_graph(asked.network, asked.images.pixels[:2].repeat(2, 1, 1, 1)[:2], any_size=asked.any_size)
    models = {"fp32": graph}
    if "fp16" in asked.settings.types:
        models["fp16"] = onnx_types.half(graph)
    if calibration is not None:
        onnx_file.write_onnx(graph, source, asked.subject.backbone)
        models["int8"] = onnx_types.quantised(source, torch.split(calibration.pixels, CALIBRATION_BATCH))
    return {kind: model for kind, model in models.items() if kind in asked.settings.types}


def _measured(asked: Asked, files: Mapping[str, Path], raw: RawImages | None) -> dict[str, dict[str, Any]]:
    """Return of each file the differences, the bytes, the share of the same neighbours and the speed."""
    rows, inputs = {}, asked.images.pixels if raw is None else raw.crops
    running = {kind: onnx_file.session(file, threads=THREADS) for kind, file in files.items()}
    for kind, file in files.items():
        found = onnx_file.run_session(running[kind], inputs, tuple(asked.wanted))
        parity = measure("onnx", onnx_file.runtime_name(), asked.images, asked.wanted, found, kind=kind)
        rows[kind] = {"file": file.name, **parity.to_json(), "bytes": file.stat().st_size}
        if "features" in found:
            neighbours = onnx_speed.neighbour_agreement(asked.wanted["features"], found["features"])
            rows[kind]["same_neighbour"] = neighbours
        if asked.any_size:
            rows[kind]["other_sizes"] = _other_sizes(asked, running[kind], kind)
        if raw is not None:
            rows[kind]["preprocessing"] = raw.compare(running[kind], asked.wanted)
    single = inputs[:1] if raw is None else raw.stored[0]
    for kind, speed in onnx_speed.speeds(running, dict.fromkeys(running, single), threads=THREADS).items():
        rows[kind]["speed"] = asdict(speed)
    return rows


def _other_sizes(asked: Asked, running: Any, kind: str) -> list[dict[str, Any]]:
    """Return the differences at two sizes that neither the backbone nor the exporter has seen.

    Raises:
        RunFailure: as `mst.export.parity.measure`.
    """
    rows, backbone, pixels = [], asked.subject.backbone, asked.images.pixels[:OTHER]
    patch, (height, width) = backbone.patch_size, pixels.shape[-2:]
    for size in ((height + patch, width + 2 * patch), (height + 2 * patch, width)):
        images = replace(asked.images, pixels=torch.nn.functional.interpolate(pixels, size))
        wanted = expected(backbone, images.pixels, tuple(asked.wanted))
        found = onnx_file.run_session(running, images.pixels, tuple(wanted))
        parity = measure("onnx", onnx_file.runtime_name(), images, wanted, found, kind=kind)
        rows.append({"size": list(size), "outputs": parity.to_json()["outputs"]})
    return rows
