"""A backbone as a program of `torch.export`: a graph and its weights, loaded without this package or timm."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.errors import RunFailure
from mst.export.network import Outputs

NAME = "backbone.pt2"


def write_program(network: Outputs, images: Tensor, path: Path) -> None:
    """Write a program for any number of images [B, C, H, W] of this size.

    Raises:
        RunFailure: torch cannot export the network.
    """
    _write(network, (images,), ({0: torch.export.Dim("batch", min=1)},), path)


def write_fixed_program(network: Outputs, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write a program whose inputs have these shapes always.

    Raises:
        RunFailure: torch cannot export the network.
    """
    _write(network, inputs, None, path)


def _write(network: Outputs, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Any]] | None, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, inputs, dynamic_shapes=shapes)
            torch.export.save(program, path)
    except Exception as error:  # the exporter's own classes differ from version to version
        reason = " ".join(str(error).split())[:300]
        raise RunFailure(f"torch {torch.__version__} cannot export {network.backbone.spec.name}: {reason}") from error


@torch.no_grad()
def program_outputs(path: Path, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what the program gives, loaded as its users do: `torch.export.load(PATH).module()(images)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.export.load(path).module()(images)
    return dict(zip(names, found, strict=True))
