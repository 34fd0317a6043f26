"""A backbone as an ONNX file, for any number of images at once, checked by onnx and measured in ONNX Runtime.

Letters (docs/algorithm.md): B images, C channels, H W pixels.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import pos_embed_sincos
from torch import Tensor

from mst.errors import MissingExtra, RunFailure, UsageError
from mst.export.network import Outputs
from mst.model.backbone import Backbone

EXTRA = "onnx"
OPSET = 18
INPUT = "images"
INFORMATION = "mst"
"""Key of the file's metadata under which it says what it is."""
MOST_BYTES = 2 * 1024**3
"""Largest ONNX file: protobuf's own limit."""


def library(name: str) -> Any:
    """Return onnx, onnxscript or onnxruntime.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra(name.partition(".")[0], EXTRA) from error


def make_graph(network: Outputs, images: Tensor, *, any_size: bool) -> Any:
    """Return the ONNX model of a network.

    Args:
        network: what to export.
        images: an example [B, C, H, W], B at least 2.
        any_size: the file takes images of all sizes that patches tile; else of the example's size.

    Raises:
        MissingExtra: the extra `onnx` is not installed.
        UsageError: this network can be exported for one size only.
        RunFailure: torch cannot export it.
    """
    for needed in ("onnx", "onnxscript"):
        library(needed)
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        patch, (height, width) = network.backbone.patch_size, images.shape[-2:]
        if not network.backbone.SAME_AT_ANY_SIZE:
            raise UsageError(
                f"--any-size: {network.backbone.spec.name} cuts windows that depend on the image's size: export a "
                "file for each size"
            )
        images = torch.nn.functional.interpolate(images, (height + 3 * patch, width + 5 * patch))  # not the own size
        shapes |= {2: patch * torch.export.Dim("h", min=1), 3: patch * torch.export.Dim("w", min=1)}
    return _exported(network, {INPUT: images}, (shapes,))


def make_fixed_graph(network: Outputs, inputs: Mapping[str, Tensor]) -> Any:
    """Return the ONNX model of a network whose inputs, by name, have these shapes always.

    Raises:
        MissingExtra: the extra `onnx` is not installed.
        RunFailure: torch cannot export it.
    """
    for needed in ("onnx", "onnxscript"):
        library(needed)
    return _exported(network, inputs, None)


def _exported(network: Outputs, inputs: Mapping[str, Tensor], shapes: tuple[dict[int, Any]] | None) -> Any:
    try:
        with quiet(), _sizes_that_vary():
            program = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(network.names),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter's own classes differ from version to version
        reason = " ".join(str(error).split())[:300]
        raise RunFailure(f"torch {torch.__version__} cannot export {network.backbone.spec.name}: {reason}") from error
    return program.model_proto  # type: ignore[union-attr]


@contextmanager
def _sizes_that_vary() -> Iterator[None]:
    """Inside: timm divides the coordinates of rotary networks by the image's own size in patches.

    timm writes `float(height)`, which torch turns into the number of the example when it traces: at every other size
    such a graph gave features that are wrong by some percent. `torch.sym_float` keeps it open.
    """
    name = "float"
    vars(pos_embed_sincos)[name] = torch.sym_float
    try:
        yield
    finally:
        del vars(pos_embed_sincos)[name]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside: what exporters print and warn of is not shown; an export that goes wrong raises."""
    names = ("", "onnxscript", "onnx_ir", "torch.onnx")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)


def write_onnx(model: Any, path: Path, backbone: Backbone, *, more: dict[str, Any] | None = None) -> None:
    """Say in the file what it is, and `more`, check it with onnx's own checker, and write it.

    Raises:
        RunFailure: the checker finds a fault, the file would be too large, or the disk refused.
    """
    onnx = library("onnx")
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    said = {"spec": backbone.spec.to_json(), "metadata": backbone.metadata, **(more or {})}
    entry.key, entry.value = INFORMATION, json.dumps(said)
    if model.ByteSize() >= MOST_BYTES:
        raise RunFailure(f"{backbone.spec.name} has {model.ByteSize()} bytes: an ONNX file holds 2 GiB at most")
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise RunFailure(f"onnx's checker refuses the graph: {str(error)[:300]}") from error
    try:
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise RunFailure(f"cannot write {path}: {error.strerror or error}") from error


def session(path: Path, threads: int = 0) -> Any:
    """Return ONNX Runtime's session of a file on the CPU.

    Raises:
        MissingExtra: onnxruntime is not installed.
        UsageError: the file is damaged.
    """
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        raise UsageError(f"ONNX Runtime cannot read {path}: {' '.join(str(error).split())[:200]}") from error


def session_of(model: Any) -> Any:
    """Return ONNX Runtime's session of a model in memory, on one thread of the CPU."""
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_session(running: Any, images: Tensor, names: Sequence[str] | None = None, *more: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a session in float32, whatever type the file computes in.

    Args:
        running: from `session`.
        images: normalised [B, C, H, W]; of a graph with preprocessing uint8 [B, H, W, C].
        names: of the outputs; None = all.
        more: its other inputs.
    """
    names = [output.name for output in running.get_outputs()] if names is None else list(names)
    inputs = {one.name: given.numpy() for one, given in zip(running.get_inputs(), (images, *more), strict=True)}
    found = running.run(names, inputs)
    return {name: torch.from_numpy(np.asarray(array)).float() for name, array in zip(names, found, strict=True)}


def runtime_name() -> str:
    """Return the name and version of the program that measures."""
    return f"ONNX Runtime {library('onnxruntime').__version__}"
