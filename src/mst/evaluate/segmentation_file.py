"""A trained segmenter on disk: weights in `segmenter.safetensors`, all else that prediction needs in a JSON beside it.

Letters: H W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mst.evaluate.model_files import ModelFiles
from mst.evaluate.segmentation_heads import HeadShape
from mst.evaluate.segmentation_inference import View
from mst.evaluate.segmentation_model import Segmenter
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone

FILES = ModelFiles("segmenter", "mst evaluate segmentation", version=1)


@dataclass(frozen=True)
class SavedSegmenter:
    """A segmenter in evaluation mode and how it looks at images."""

    segmenter: Segmenter
    view: View


def save_segmenter(folder: Path, segmenter: Segmenter, view: View) -> None:
    """Write a segmenter; files that are there are replaced only when the new ones are complete.

    Raises:
        RunFailure: the folder cannot be made, or the disk refused.
    """
    values = {
        "spec": segmenter.backbone.spec.to_json(),
        "head": asdict(segmenter.shape),
        "classes": list(segmenter.classes),
        "view": asdict(view),
    }
    FILES.save(folder, segmenter, values)


def load_segmenter(folder: Path, device: torch.device) -> SavedSegmenter:
    """Return what `save_segmenter` wrote, on `device`.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the description.
    """
    segmenter, view = FILES.load(folder, _described)
    return SavedSegmenter(segmenter.to(device), view)


def _described(values: dict[str, Any]) -> tuple[Segmenter, View]:
    """Return the network without its weights, and the view."""
    backbone = build_backbone(BackboneSpec.from_json(values["spec"]))
    shape, raw = HeadShape(**values["head"]), values["view"]
    stride = None if raw["stride"] is None else (int(raw["stride"][0]), int(raw["stride"][1]))
    view = View((int(raw["size"][0]), int(raw["size"][1])), stride, tuple(raw["mean"]), tuple(raw["std"]))
    return Segmenter(backbone, values["classes"], shape, frozen=True, seed=0), view
