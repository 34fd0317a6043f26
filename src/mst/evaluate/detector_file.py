"""A trained detector on disk: weights in safetensors, and beside them a JSON file with all that rebuilds it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torchvision.models.detection import MaskRCNN

from mst.errors import CheckpointError, MstError
from mst.evaluate.detector import DetectorShape, build_detector
from mst.evaluate.pyramid import Pyramid
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.runtime.files import write_atomic

FORMAT = 1
WEIGHTS, DESCRIPTION = "detector.safetensors", "detector.json"


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
    """

    spec: BackboneSpec
    shape: DetectorShape
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {"format": FORMAT, **asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DetectorDescription:
        """Rebuild the record.

        Raises:
            MstError, KeyError, TypeError, ValueError: it is none.
        """
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        shape = {**values["shape"], "short_sides": tuple(values["shape"]["short_sides"])}
        names = ("classes", "category_ids", "mean", "std")
        lists = {name: tuple(values[name]) for name in names}
        if len(lists["classes"]) != len(lists["category_ids"]):
            raise ValueError(f"{len(lists['classes'])} classes and {len(lists['category_ids'])} category ids")
        return cls(BackboneSpec.from_json(values["spec"]), DetectorShape(**shape), **lists)


def save_detector(folder: Path, detector: MaskRCNN, description: DetectorDescription) -> None:
    """Write weights and description into a folder, in place of an older detector there.

    Raises:
        RunFailure: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    write_atomic(folder / DESCRIPTION, json.dumps(description.to_json(), indent=2))


def load_detector(folder: Path, *, compute: torch.dtype = torch.float32) -> tuple[MaskRCNN, DetectorDescription]:
    """Return a detector in evaluation mode on the CPU, and its description.

    Args:
        folder: from `save_detector`.
        compute: type that backbone and pyramid compute in.

    Raises:
        CheckpointError: no detector there, or a damaged one.
    """
    file = folder / DESCRIPTION
    if not file.is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no detector ({DESCRIPTION} and {WEIGHTS}): give the --out of an `mst evaluate detection`"
        )
    try:
        found = DetectorDescription.from_json(json.loads(file.read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, MstError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read the detector in {folder}: {error}; train or copy it again") from error
    with torch.random.fork_rng(devices=[]):
        pyramid = Pyramid(build_backbone(found.spec), channels=found.shape.channels, frozen=True, compute=compute)
        detector = build_detector(pyramid, len(found.classes), found.shape, mean=found.mean, std=found.std)
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit {DESCRIPTION} ({str(error).splitlines()[0]}): train or copy it again"
        ) from error
    return detector.eval(), found
