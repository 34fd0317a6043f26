"""A backbone as a folder that timm itself can load, checked by loading it with timm and comparing features.

The folder is what timm calls a local directory: `model.safetensors` and `config.json`, as on the Hugging Face hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from mst.errors import RunFailure
from mst.model.backbone import Backbone
from mst.model.build import any_size_arguments, timm_arguments
from mst.runtime.seeding import generator
from mst.runtime.storage.files import write_atomic

TOLERANCE = 1e-4
"""Largest difference of a feature, relative to the largest feature; the same weights in the same code give 0."""


def export_timm(backbone: Backbone, folder: Path) -> float:
    """Write the backbone for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        backbone: in evaluation mode, on the CPU.
        folder: made if it is not there.

    Returns:
        The largest difference between features of the backbone and of what timm loads, relative to the largest.

    Raises:
        RunFailure: the disk refused, the backbone gives no numbers, or timm's network gives other features.
    """
    if not bool(backbone(_images(backbone)).isfinite().all()):
        raise RunFailure("the features are not finite numbers, although the weights are: the training diverged")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailure(f"cannot make {folder}: {error.strerror or error}") from error
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.timm_state_dict().items()}
    write_atomic(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_atomic(folder / "config.json", json.dumps(timm_config(backbone), indent=2) + "\n")
    difference = relative_difference(backbone, folder)
    if not difference <= TOLERANCE:  # NaN as well
        raise RunFailure(f"timm {timm.__version__} gives other features from {folder} (difference {difference:.2e})")
    return difference


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """Return timm's description of the network and of the images it takes."""
    spec, metadata = backbone.spec, backbone.metadata
    any_size = any_size_arguments(spec.name)
    images = {
        "input_size": [spec.channels, *spec.image_size],
        "interpolation": "bicubic",
        "fixed_input_size": not any_size,
    }
    statistics = {key: metadata[key] for key in ("mean", "std") if key in metadata}
    network = {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    return {
        "architecture": spec.name,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        "model_args": timm_arguments(spec) | any_size,
        "pretrained_cfg": images | statistics | network,
    }


@torch.no_grad()
def relative_difference(backbone: Backbone, folder: Path) -> float:
    """Load the folder with timm and compare the features of random images."""
    loaded = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    images = _images(backbone)
    expected, found = backbone(images), loaded(images)  # [2, D]
    return float((expected - found).abs().max() / expected.abs().max())


def _images(backbone: Backbone) -> Tensor:
    """Return random images [2, C, H, W]."""
    spec = backbone.spec
    return torch.randn(2, spec.channels, *spec.image_size, generator=generator("export", spec.name))
