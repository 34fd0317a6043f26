"""A backbone on disk: weights under timm's names in safetensors, everything else in a JSON file of the same stem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from mst.errors import CheckpointError, UsageError
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone
from mst.paths import like_named, user_path
from mst.runtime.storage.files import write_atomic
from mst.weights.description import BadDescription, numbers, part, read_description, shown
from mst.weights.files import load_exactly

FORMAT = 1
FILE_NAME = "backbone.safetensors"
REMEDY = "copy or export the backbone again"


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
    text = describe(backbone.spec, metadata)
    # One key only: safetensors writes several in an order that changes from process to process.
    write_atomic(path, save(weights, metadata={"format": "pt"}))
    write_atomic(path.with_suffix(".json"), text)


def describe(spec: BackboneSpec, metadata: dict[str, Any], more: dict[str, Any] | None = None) -> str:
    """Return the text of a description, with more entries at its end."""
    return json.dumps({"format": FORMAT, "spec": spec.to_json(), "metadata": metadata, **(more or {})}, indent=2)


def load_backbone(path: Path | str) -> Backbone:
    """Load a backbone in evaluation mode; its `metadata` says how images must be normalised.

    Args:
        path: the weights' file, or a run folder that holds `backbone.safetensors`.

    Raises:
        CheckpointError: a file is missing or damaged, the description says what cannot be, or the weights are not
            exactly the tensors of its network, finite and of a floating type. Said before memory is taken.
    """
    path = user_path(path)
    try:
        path = path / FILE_NAME if path.is_dir() else path
        spec, metadata = read_backbone_description(path)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        backbone = load_exactly(path, lambda: build_backbone(spec), _network, REMEDY)
    except CheckpointError:
        raise
    except UsageError as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: {error}") from error
    backbone.metadata = metadata
    return backbone.eval()


def _network(backbone: Backbone) -> nn.Module:
    network: nn.Module = backbone.model
    return network


def read_backbone_description(path: Path) -> tuple[BackboneSpec, dict[str, Any]]:
    """Return what the description beside a file of weights says the backbone is, and its metadata.

    Raises:
        CheckpointError: a file is missing, or the description says what cannot be.
        OSError: a name that is too long, a folder that may not be entered.
    """
    description = path.with_suffix(".json")
    for file in (path, description):
        if not file.is_file():
            other = "" if file is path else "; weights of another project: NAME=FILE, with timm's name of the network"
            raise CheckpointError(
                f"{file} does not exist{like_named(file)}: "
                f"give a run folder, or a .safetensors file with the .json of its name beside it{other}"
            )
    try:
        values = read_description(description)
        version = values.get("format")
        if type(version) is not int or version != FORMAT:
            raise CheckpointError(f"{description} has format {shown(version)}, this version reads {FORMAT}")
        spec, metadata = BackboneSpec.from_json(part(values, "spec")), part(values, "metadata")
        check_statistics(metadata, spec.channels)
    except OSError as error:
        raise CheckpointError(f"cannot read {description}: {error.strerror or error}; {REMEDY}") from error
    except BadDescription as error:
        raise CheckpointError(f"cannot read {description}: {error}; {REMEDY}") from error
    return spec, metadata


def check_statistics(metadata: dict[str, Any], channels: int) -> None:
    """Refuse mean and std, where there are any, that are no number for each channel.

    Raises:
        BadDescription: they are so.
    """
    for key in ("mean", "std"):
        if key in metadata:
            numbers(metadata, key, count=channels, positive=key == "std")
