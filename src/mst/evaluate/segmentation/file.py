"""A trained segmenter on disk: weights in `segmenter.safetensors`, all else that prediction needs in a JSON file.

Letters: H W pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from mst.data.value_range import BY_TYPE, Scale
from mst.evaluate.common.model_files import ModelFiles, kept_ranges, ranges_to_keep
from mst.evaluate.segmentation.heads import HeadName, HeadShape, NormName
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.model.backbone import MOST_SIDE, BackboneSpec
from mst.model.build import build_backbone
from mst.weights.description import BadDescription, numbers, part, shown, whole, wholes, words

MOST_CHANNELS, MOST_CLASSES = 1 << 14, 1 << 16
"""Largest numbers of a description."""
FILES = ModelFiles("segmenter", "mst evaluate segmentation", version=1)


@dataclass(frozen=True)
class SavedSegmenter:
    """A segmenter in evaluation mode and how it looks at images."""

    segmenter: Segmenter
    view: View
    value_ranges: dict[str, list[float]] | None = None
    """Of its images (`mst.data.value_range`); None in files of older versions."""


def save_segmenter(folder: Path, segmenter: Segmenter, view: View, scale: Scale = BY_TYPE) -> None:
    """Write a segmenter; files that are there are replaced only when the new ones are complete.

    Raises:
        RunFailure: the folder cannot be made, or the disk refused.
    """
    values = {
        "spec": segmenter.backbone.spec.to_json(),
        "head": asdict(segmenter.shape),
        "classes": list(segmenter.classes),
        "view": asdict(view),
        "value_ranges": ranges_to_keep(scale),
    }
    FILES.save(folder, segmenter, values)


def load_segmenter(folder: Path, device: torch.device) -> SavedSegmenter:
    """Return what `save_segmenter` wrote, on `device`.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the description.
    """
    segmenter, (view, ranges) = FILES.load(folder, _described)
    return SavedSegmenter(segmenter.to(device), view, ranges)


def described_view(values: dict[str, Any], spec: BackboneSpec) -> View:
    """Return the view that a description states.

    Raises:
        BadDescription, UsageError: it states none, or one that does not go with the backbone.
    """
    view = part(values, "view")
    size, stride = wholes(view, "size", count=2, most=MOST_SIDE), None
    if view.get("stride") is not None:
        stride = wholes(view, "stride", count=2, most=MOST_SIDE)
    mean, std = (numbers(view, key, count=spec.channels, positive=key == "std") for key in ("mean", "std"))
    found = View((size[0], size[1]), None if stride is None else (stride[0], stride[1]), mean, std)
    found.check(spec.patch_size)
    return found


def _described(values: dict[str, Any]) -> tuple[Segmenter, tuple[View, dict[str, list[float]] | None]]:
    """Return the network without its weights, the view, and the value ranges."""
    spec, head = BackboneSpec.from_json(part(values, "spec")), part(values, "head")
    found = described_view(values, spec)
    whole(head, "channels", most=MOST_CHANNELS)
    for key, known in (("head", get_args(HeadName)), ("norm", get_args(NormName))):
        if head.get(key) not in known:
            raise BadDescription(f"{key} is {shown(head.get(key))}: must be one of {', '.join(known)}")
    classes = words(values, "classes", most=MOST_CLASSES)
    return Segmenter(build_backbone(spec), classes, HeadShape(**head), frozen=True, seed=0), (
        found,
        kept_ranges(values),
    )
