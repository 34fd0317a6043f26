"""A backbone on disk: weights under timm's names in safetensors, everything else in a JSON file of the same stem."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mst.errors import CheckpointError, RunFailure, UsageError
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone

FORMAT = 1
FILE_NAME = "backbone.safetensors"


def save_backbone(path: Path | str, backbone: Backbone, metadata: dict[str, Any]) -> None:
    """Write the weights to `path` (`.safetensors`) and the description beside it (`.json`).

    Args:
        path: the weights' file; existing files are replaced only when the new ones are complete.
        backbone: the mask token is left out.
        metadata: JSON types; `mean` and `std` (one number per channel) say how images must be normalised.

    Raises:
        RunFailure: the disk refused.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.timm_state_dict().items()}
    text = json.dumps({"format": FORMAT, "spec": backbone.spec.to_json(), "metadata": metadata}, indent=2)
    # One key only: safetensors writes several in an order that changes from process to process.
    _replace(path, save(weights, metadata={"format": "pt"}))
    _replace(path.with_suffix(".json"), text.encode())


def load_backbone(path: Path | str) -> Backbone:
    """Load a backbone in evaluation mode; its `metadata` says how images must be normalised.

    Args:
        path: the weights' file, or a run folder that holds `backbone.safetensors`.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the description.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    spec, metadata = _read_description(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; copy or export the backbone again") from error
    try:
        backbone = build_backbone(spec)
    except UsageError as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: {error}") from error
    _check_match(path, backbone.timm_state_dict(), weights)
    backbone.model.load_state_dict(weights)
    backbone.metadata = metadata
    return backbone.eval()


def _read_description(path: Path) -> tuple[BackboneSpec, dict[str, Any]]:
    description = path.with_suffix(".json")
    for file in (path, description):
        if not file.is_file():
            raise CheckpointError(
                f"{file} does not exist: give a run folder, or a .safetensors file with the .json of its name beside it"
            )
    try:
        values = json.loads(description.read_text())
        number, spec, metadata = values["format"], values["spec"], dict(values["metadata"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"cannot read {description}: {error}; copy or export the backbone again") from error
    if number != FORMAT:
        raise CheckpointError(f"{description} has format {number}, this version reads {FORMAT}")
    try:
        return BackboneSpec.from_json(spec), metadata
    except CheckpointError as error:
        raise CheckpointError(f"{description}: {error}") from error


def _check_match(path: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse weights that are not exactly the network's."""
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    shapes = [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
    problems = {"missing": missing, "unknown": unknown, "of another shape": sorted(shapes)}
    parts = [f"{len(names)} {what} (first {names[0]})" for what, names in problems.items() if names]
    if parts:
        raise CheckpointError(f"{path} does not fit its description: of {len(expected)} tensors, {', '.join(parts)}")


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses this as well
            aside.unlink(missing_ok=True)
        raise RunFailure(f"cannot write {path}: {error.strerror or error}; the previous file is intact") from error
