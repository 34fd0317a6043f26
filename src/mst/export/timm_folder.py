"""A backbone as a folder that timm itself loads: `model.safetensors` and `config.json`, as on the Hugging Face hub.

The same folder is what Hugging Face's wrapper of timm (`TimmWrapperModel`) loads: `mst.export.hugging_face`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mst.errors import RunFailure
from mst.export.classifier import Head, with_classifier
from mst.model.backbone import Backbone
from mst.model.build import any_size_arguments, timm_arguments
from mst.runtime.storage.files import write_atomic

CROP_PERCENT = 224 / 256
"""Share of the resized image that is seen (`mst.evaluate.common.protocol.ImageTransform`)."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_timm(backbone: Backbone, folder: Path, head: Head | None = None) -> None:
    """Write the backbone for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        backbone: in evaluation mode, on the CPU.
        folder: exists.
        head: its classifier; None = features without classes.

    Raises:
        RunFailure: the disk refused.
    """
    weights, config = timm_weights(backbone), timm_config(backbone)
    if head is not None:
        weights, classifier = with_classifier(backbone, head)
        config["pretrained_cfg"] |= {"num_classes": len(head.classes), "classifier": classifier}
        config |= {"num_classes": len(head.classes), "label_names": list(head.classes)}
    write_atomic(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def crop_share(size: tuple[int, int]) -> float:
    """Return the share of the resized image with which timm, which rounds down, resizes to as many pixels as we do."""
    side = max(size)
    resized = round(side / CROP_PERCENT)
    return CROP_PERCENT if math.floor(side / CROP_PERCENT) == resized else side / (resized + 0.5)


def timm_weights(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights under timm's names, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.timm_state_dict().items()}


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """Return timm's description of the network and of the images it takes."""
    spec, metadata = backbone.spec, backbone.metadata
    any_size = any_size_arguments(spec.name)
    arguments = timm_arguments(spec) | any_size  # of which transformers gives the number of classes itself
    images = {
        "input_size": [spec.channels, *spec.image_size],
        "interpolation": "bicubic",
        "crop_pct": crop_share(spec.image_size),
        "crop_mode": "center",
        "fixed_input_size": not any_size,
        "pool_size": None,
    }
    statistics = {key: metadata[key] for key in ("mean", "std") if key in metadata}
    network = {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    pool = getattr(backbone.model, "global_pool", None)
    return {
        "architecture": spec.name,
        "num_classes": 0,
        "num_features": backbone.embed_dim,
        **({"global_pool": pool} if isinstance(pool, str) else {}),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": images | statistics | network,
    }


@torch.no_grad()
def timm_outputs(folder: Path, images: Tensor) -> dict[str, Tensor]:
    """Return the features that timm gives, or with a classifier the logits, loading the folder as its users do.

    Raises:
        RunFailure: timm does not load it.
    """
    try:
        loaded = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise RunFailure(f"timm {timm.__version__} does not load what was written: {str(error)[:200]}") from error
    return {"features": loaded(images)}


@torch.no_grad()
def safetensors_outputs(backbone: Backbone, file: Path, images: Tensor, classes: int = 0) -> dict[str, Tensor]:
    """Return the features of timm's own network with the weights of a file: `load_state_dict(load_file(FILE))`.

    With `classes` it has a classifier, and its logits are returned in their place.
    """
    spec = backbone.spec
    arguments = timm_arguments(spec) | any_size_arguments(spec.name) | {"num_classes": classes}
    network = timm.create_model(spec.name, **arguments).eval()
    network.load_state_dict(load_file(file))
    return {"features": network(images)}
