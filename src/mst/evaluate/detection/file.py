"""A trained detector on disk: its weights in safetensors, and a JSON file from which it can be built again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import MaskRCNN

from mst.evaluate.common.model_files import ModelFiles, kept_ranges
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection.detector import DetectorShape, build_detector
from mst.model.backbone import MOST_SIDE, BackboneSpec
from mst.model.build import build_backbone
from mst.weights.description import BadDescription, numbers, part, whole, wholes, words

MOST_WIDTH, MOST_CLASSES, MOST_ID = 1 << 14, 1 << 16, 1 << 63
"""Largest numbers of a description."""
FILES = ModelFiles("detector", "mst evaluate detection", version=1)


@dataclass(frozen=True)
class DetectorDescription:
    """What a detector is and what it was trained to find.

    Attributes:
        spec: of its backbone.
        shape: of the rest.
        classes: names, in the order of its labels.
        category_ids: ids of the classes in the annotations it was trained on.
        mean: of each channel of its images, in [0, 1].
        std: of each channel.
        masks: whether it finds masks, or boxes only.
        value_ranges: of its images (`mst.data.value_range`); None in files of older versions.
    """

    spec: BackboneSpec
    shape: DetectorShape
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    masks: bool = True
    value_ranges: dict[str, list[float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectorDescription:
        """Rebuild the record.

        Raises:
            MstError, KeyError, TypeError, ValueError: it is none.
        """
        spec, shape = BackboneSpec.from_json(part(values, "spec")), part(values, "shape")
        sides = wholes(shape, "short_sides", most=MOST_SIDE)
        for key, most in (("long_side", MOST_SIDE), ("anchor_size", MOST_SIDE), ("channels", MOST_WIDTH)):
            whole(shape, key, most=most)
        whole(shape, "head_dim", most=MOST_WIDTH)
        classes = words(values, "classes", most=MOST_CLASSES)
        ids = wholes(values, "category_ids", least=-MOST_ID, most=MOST_ID)
        if len(ids) != len(classes):
            raise BadDescription(f"{len(classes)} classes and {len(ids)} category ids")
        mean, std = (numbers(values, key, count=spec.channels, positive=key == "std") for key in ("mean", "std"))
        masks = values.get("masks", True)  # older versions had no other
        if not isinstance(masks, bool):
            raise BadDescription(f"masks is {masks!r}, not true or false")
        built = DetectorShape(**{**shape, "short_sides": sides})
        return cls(spec, built, classes, ids, mean, std, masks, kept_ranges(values))


def save_detector(folder: Path, detector: MaskRCNN, description: DetectorDescription) -> None:
    """Write weights and description into a folder, in place of an older detector there.

    Raises:
        RunFailure: the folder cannot be made, or the disk refused.
    """
    FILES.save(folder, detector, description.to_json())


def load_detector(folder: Path, *, compute: torch.dtype = torch.float32) -> tuple[MaskRCNN, DetectorDescription]:
    """Return a detector in evaluation mode on the CPU, and its description.

    Args:
        folder: from `save_detector`.
        compute: type that backbone and pyramid compute in.

    Raises:
        CheckpointError: no detector there, or a damaged one.
    """

    def build(values: dict[str, Any]) -> tuple[MaskRCNN, DetectorDescription]:
        found = DetectorDescription.from_json(values)
        with torch.random.fork_rng(devices=[]):
            pyramid = Pyramid(build_backbone(found.spec), channels=found.shape.channels, frozen=True, compute=compute)
            count = len(found.classes)
            built = build_detector(pyramid, count, found.shape, mean=found.mean, std=found.std, masks=found.masks)
            return built, found

    return FILES.load(folder, build)
