"""A trained segmenter on disk: weights in `segmenter.safetensors`, all else that prediction needs in a JSON beside it.

Letters: H W pixels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mst.errors import CheckpointError, RunFailure, UsageError
from mst.evaluate.segmentation_heads import HeadShape
from mst.evaluate.segmentation_inference import View
from mst.evaluate.segmentation_model import Segmenter
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.runtime.files import write_atomic

FORMAT = 1
WEIGHTS, DESCRIPTION = "segmenter.safetensors", "segmenter.json"


@dataclass(frozen=True)
class SavedSegmenter:
    """A segmenter in evaluation mode and how it looks at images."""

    segmenter: Segmenter
    view: View


def save_segmenter(folder: Path, segmenter: Segmenter, view: View) -> None:
    """Write a segmenter; files that are there are replaced only when the new ones are complete.

    Raises:
        RunFailure: the disk refused.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    description = {
        "format": FORMAT,
        "spec": segmenter.backbone.spec.to_json(),
        "head": asdict(segmenter.shape),
        "classes": list(segmenter.classes),
        "view": asdict(view),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailure(f"cannot make {folder}: {error.strerror or error}") from error
    write_atomic(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / DESCRIPTION, json.dumps(description, indent=2))


def load_segmenter(folder: Path, device: torch.device) -> SavedSegmenter:
    """Return what `save_segmenter` wrote, on `device`.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the description.
    """
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}: give the --out of an `mst evaluate segmentation`")
    segmenter, view = _described(folder / DESCRIPTION)
    path = folder / WEIGHTS
    try:
        segmenter.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not fit {DESCRIPTION}: {reason[:200]}") from error
    return SavedSegmenter(segmenter.to(device).eval(), view)


def _described(path: Path) -> tuple[Segmenter, View]:
    """Return the network without its weights, and the view."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {values['format']}, this version reads {FORMAT}")
        backbone = build_backbone(BackboneSpec.from_json(values["spec"]))
        shape, raw = HeadShape(**values["head"]), values["view"]
        stride = None if raw["stride"] is None else (int(raw["stride"][0]), int(raw["stride"][1]))
        view = View((int(raw["size"][0]), int(raw["size"][1])), stride, tuple(raw["mean"]), tuple(raw["std"]))
        return Segmenter(backbone, values["classes"], shape, frozen=True, seed=0), view
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OSError, UsageError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; train the segmenter again") from error
