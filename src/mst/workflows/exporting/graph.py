"""One network with a head as a graph, ONNX or torch.export, and what the program that loads it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.export import onnx_file, torch_program
from mst.export.network import Outputs
from mst.model.backbone_file import describe
from mst.runtime.storage.files import write_atomic


@dataclass(frozen=True)
class Measured:
    """What a program found.

    Attributes:
        program: name and version.
        outputs: by name.
        file: that it loaded.
    """

    program: str
    outputs: dict[str, Tensor]
    file: Path


def write_graph(
    form: str, network: Outputs, pixels: Tensor, stem: Path, said: dict[str, Any], *, any_size: bool
) -> Measured:
    """Write a graph with what it says of itself, and run it.

    Args:
        form: onnx or torch-export.
        network: gives the outputs; its backbone has the metadata.
        pixels: normalised images [n, C, H, W], on which it is run.
        stem: the path without its ending.
        said: what the file says beside spec and metadata: classes and so on.
        any_size: of ONNX, as `mst.export.onnx_file.make_graph`.

    Raises:
        MissingExtra, UsageError, RunFailure: as the functions of the format.
    """
    backbone, example = network.backbone, pixels[:2].repeat(2, 1, 1, 1)[:2]
    if form == "onnx":
        onnx_file.library("onnxruntime")
        path = stem.with_suffix(".onnx")
        graph = onnx_file.make_graph(network, example, any_size=any_size)
        onnx_file.write_onnx(graph, path, backbone, more=said)
        found = onnx_file.run_session(onnx_file.session(path, threads=1), pixels, network.names)
        return Measured(onnx_file.runtime_name(), found, path)
    path = stem.with_suffix(".pt2")
    torch_program.write_program(network, example, path)
    text = describe(backbone.spec, backbone.metadata, {**said, "outputs": list(network.names)})
    write_atomic(path.with_suffix(".json"), text)
    found = torch_program.program_outputs(path, pixels, network.names)
    return Measured(f"torch.export {torch.__version__}", found, path)
