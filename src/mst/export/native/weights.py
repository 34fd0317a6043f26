"""A backbone in transformers' own classes: ViT, DeiT, Swin, Swinv2, Dinov2 with and without registers, DINOv3 ViT.

The pooler of ViT and DeiT, a layer that this package does not train, becomes the identity: `pooler_output` is then the
CLS token after the final norm. Letters (docs/algorithm.md): B images, C channels, D embedding size, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mst.errors import CheckpointError
from mst.export.classifier import Head
from mst.export.native.names import STEMS, Native, NotNative, names
from mst.export.timm_folder import CONFIG, CROP_PERCENT, WEIGHTS
from mst.model.backbone import Backbone
from mst.model.backbone_file import REMEDY, read_backbone_description
from mst.model.build import build_backbone
from mst.runtime.storage.files import write_atomic
from mst.weights.tensors import unusable

PROCESSOR, POSITIONS = "preprocessor_config.json", "embeddings.position_embeddings"


def write_native(backbone: Backbone, found: Native, folder: Path, head: Head | None = None) -> None:
    """Write weights, configuration and image processor for transformers' own classes.

    Args:
        backbone: in evaluation mode, on the CPU.
        found: its class.
        folder: exists.
        head: its classifier; None = features without classes.

    Raises:
        NotNative: the class has no such weight, or no classifier.
        RunFailure: the disk refused.
    """
    config = {"model_type": found.kind, "architectures": [f"{found.stem}Model"], **found.config}
    weights = native_weights(backbone, found.kind)
    if head is not None:
        weights = {f"{found.kind}.{name}": tensor for name, tensor in weights.items() if not name.startswith("pooler")}
        weights |= _classifier(found.kind, head.layer)
        config["architectures"] = [architecture(found)]
        config |= {"id2label": dict(enumerate(head.classes)), "label2id": {n: i for i, n in enumerate(head.classes)}}
    write_atomic(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomic(folder / PROCESSOR, json.dumps(processor(backbone), indent=2) + "\n")


def architecture(found: Native) -> str:
    """Return the class with a classifier.

    Raises:
        NotNative: there is none.
    """
    if found.kind == "dinov3_vit":
        raise NotNative("transformers has no classifier for DINOv3ViTModel")
    return f"{found.stem}ForImageClassification{'WithTeacher' if found.kind == 'deit' else ''}"


def native_weights(backbone: Backbone, kind: str) -> dict[str, Tensor]:
    """Return the weights under transformers' names, on the CPU, with those that timm has not.

    Raises:
        NotNative: transformers' network has no such weight.
    """
    own = {name: tensor.detach().cpu() for name, tensor in backbone.timm_state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, others in names(kind, own).items():
        found |= {other: part.contiguous() for other, part in zip(others, own[name].chunk(len(others)), strict=True)}
    width = backbone.embed_dim
    if kind in ("vit", "deit"):
        found |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    if kind in ("dinov2", "dinov2_with_registers"):
        found["embeddings.mask_token"] = torch.zeros(1, width)
    if kind == "dinov3_vit":
        found["embeddings.mask_token"] = torch.zeros(1, 1, width)
    network: Any = backbone.model
    if getattr(network, "no_embed_class", False) and POSITIONS in found:  # there the CLS token has a position as well
        found[POSITIONS] = torch.cat([torch.zeros_like(found[POSITIONS][:, :1]), found[POSITIONS]], 1)
    if kind == "dinov2_with_registers":
        scales = (f"encoder.layer.{i}.layer_scale{n}.lambda1" for i in range(len(network.blocks)) for n in (1, 2))
        found = {scale: torch.ones(width) for scale in scales} | found
    return found


def _classifier(kind: str, layer: nn.Linear) -> dict[str, Tensor]:
    weight, bias = layer.weight.detach().cpu().contiguous(), layer.bias.detach().cpu().contiguous()
    if kind == "deit":
        both = {f"{name}_classifier.weight": weight.clone() for name in ("cls", "distillation")}
        return both | {f"{name}_classifier.bias": bias.clone() for name in ("cls", "distillation")}
    if kind in ("dinov2", "dinov2_with_registers"):
        weight = torch.cat([weight, torch.zeros_like(weight)], 1)  # [K, 2 D]: of the mean of the patch tokens nothing
    return {"classifier.weight": weight, "classifier.bias": bias}


def processor(backbone: Backbone) -> dict[str, Any]:
    """Return the settings of an image processor that resizes, cuts and normalises as this package evaluates."""
    (height, width), metadata = backbone.spec.image_size, backbone.metadata
    statistics = {f"image_{key}": list(metadata[key]) for key in ("mean", "std") if key in metadata}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(max(height, width) / CROP_PERCENT)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": backbone.spec.channels == 3,
        **statistics,
    }


@torch.no_grad()
def native_outputs(model: Any, found: Native, images: Tensor) -> dict[str, Tensor]:
    """Return features and patch tokens as they follow from what transformers' model gives."""
    given = model(pixel_values=images)
    tokens = given.last_hidden_state  # [B, T, D]
    patches = tokens[:, found.prefix_tokens :]
    features = {
        "pooler_output": given.pooler_output,
        "both tokens": tokens[:, :2].mean(1),
        "patch tokens": patches.mean(1),
    }
    return {"features": features[found.pooling], "patch_tokens": patches}


def load_native(file: Path, kind: str, classes: Sequence[str]) -> tuple[Backbone, Head | None]:
    """Return the backbone of a file that `write_native` wrote, and its classifier, in evaluation mode on the CPU.

    Args:
        file: of the weights; its description lies beside it.
        kind: of transformers' network.
        classes: of its classifier; none = there is none.

    Raises:
        CheckpointError: it is damaged, or not what its description says.
    """
    spec, metadata = read_backbone_description(file)
    if kind not in STEMS:
        raise CheckpointError(f"{file} is of transformers' kind {kind}, known are {', '.join(STEMS)}; {REMEDY}")
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; {REMEDY}") from error
    prefix = f"{kind}." if classes else ""
    backbone = build_backbone(spec)
    own = backbone.timm_state_dict()
    try:
        restored = {
            name: torch.cat([weights[prefix + other] for other in others]) for name, others in names(kind, own).items()
        }
        head = _head(weights, kind, classes, backbone.embed_dim)
    except (KeyError, RuntimeError, NotNative) as error:
        raise CheckpointError(f"{file} does not fit its description: {error} is wrong or missing; {REMEDY}") from error
    network: Any = backbone.model
    if getattr(network, "no_embed_class", False) and "pos_embed" in restored:
        restored["pos_embed"] = restored["pos_embed"][:, 1:]
    for name, tensor in restored.items():
        if tensor.shape != own[name].shape or (reason := unusable(tensor, own[name])) is not None:
            reason = f"has shape {list(tensor.shape)}" if tensor.shape != own[name].shape else reason
            raise CheckpointError(f"{file}: {name} {reason}; {REMEDY}")
    network.load_state_dict(restored)
    backbone.metadata = metadata
    return backbone.eval(), head


def _head(weights: dict[str, Tensor], kind: str, classes: Sequence[str], width: int) -> Head | None:
    if not classes:
        return None
    name = "cls_classifier" if kind == "deit" else "classifier"
    layer = nn.Linear(width, len(classes))
    layer.load_state_dict({"weight": weights[f"{name}.weight"][:, :width], "bias": weights[f"{name}.bias"]})
    return Head(layer.eval(), tuple(classes))
