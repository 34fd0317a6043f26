"""Objects in images without labels, by a trained detector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mst.data.unreadable import tell_left_out
from mst.errors import CheckpointError, MstError
from mst.evaluate.coco.masks import coco_mask_library
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.detection.detector import as_detections
from mst.evaluate.detection.file import DetectorDescription, load_detector
from mst.evaluate.detection.metrics import Detection
from mst.evaluate.detection.pictures import DRAWN_SCORE, detection_writer
from mst.evaluate.detection.prediction import MIN_SCORE, Finder, Prediction, predict_objects, prediction_json
from mst.export.detector import load_exported_detector
from mst.export.reading import graph_in
from mst.paths import user_path
from mst.runtime.device import Precision, select_device, select_precision
from mst.runtime.storage.outputs import Outputs
from mst.workflows.prediction.inputs import PredictionInput

FILE = "predictions.json"
STEM = "detector"
"""Of an exported file."""


@dataclass(frozen=True)
class TrainedDetector:
    """A detector, saved by its training or exported.

    Attributes:
        network: in evaluation mode, on its device.
        description: what it finds.
        find: how an exported one finds objects; None = as torchvision's.
    """

    network: nn.Module
    description: DetectorDescription
    find: Finder | None


def load_trained(folder: Path, device: torch.device, compute: torch.dtype = torch.float32) -> TrainedDetector:
    """Return the detector of a folder, or of a graph that `mst export --model` wrote.

    Raises:
        CheckpointError: there is none, or a damaged one.
        MissingExtra: the program that computes it is not installed.
    """
    file = graph_in(folder, STEM)
    if file is None:
        detector, description = load_detector(folder, compute=compute)
        return TrainedDetector(detector.to(device), description, None)
    exported = load_exported_detector(file)
    try:
        description = DetectorDescription.from_json(exported.said)
    except (MstError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; export it again") from error

    def find(image: CocoImage, pixels: Tensor) -> list[Detection]:
        found = exported(pixels)
        return as_detections(image, {**found, "masks": found["masks"][:, None]} if "masks" in found else found)

    return TrainedDetector(exported.to(device), description, find)


def predict_detection(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    min_score: float = MIN_SCORE,
    picture_score: float = DRAWN_SCORE,
    picture_limit: int | None = None,
    limit: int | None = None,
    value_range: tuple[float, float] | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> tuple[Prediction, DetectorDescription]:
    """Find objects in every image under `data`; write `predictions.json` and a picture of each image into `out`.

    Args:
        model: folder of a trained detector, or what `mst export --model` made of it.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: folder for the files; those of an earlier prediction are replaced, other files never.
        min_score: what scores less is left out.
        picture_score: what scores less is not drawn.
        picture_limit: at most this many pictures; None = all.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of backbone and pyramid.
        progress: show a bar.

    Returns:
        What was found, with the images that could not be read; and what the detector is.

    Raises:
        UsageError: no such images, `out` is a file, or holds a file of an output's name that no prediction wrote.
        CheckpointError: no detector in `model`, or a damaged one.
        DataError: no image can be read.
        MissingExtra: the extra `detection` is not installed.
    """
    given = PredictionInput(
        str(model), str(data), str(out), limit, value_range, device, precision, progress, picture_limit
    )
    return detect(given, min_score=min_score, picture_score=picture_score)


def detect(given: PredictionInput, *, min_score: float, picture_score: float) -> tuple[Prediction, DetectorDescription]:
    """Do what `predict_detection` says."""
    coco_mask_library()
    target = user_path(given.out)
    outputs, pictures = (Outputs(folder, "predict detection", "--out") for folder in (target, target / "pictures"))
    outputs.check([FILE])
    place = select_device(given.device, flag="--device")
    compute, _ = select_precision(given.precision, place)
    trained = load_trained(user_path(given.model), place, compute)
    description = trained.description
    channels = description.spec.channels
    images = given.images(channels)
    found = predict_objects(
        trained.network,
        description,
        images,
        min_score=min_score,
        progress=given.progress,
        watch=detection_writer(
            pictures, given.pictures(images), description.classes, min_score=picture_score, annotated=False
        ),
        scale=given.scale(images, channels, description.value_ranges),
        find=trained.find,
    )
    tell_left_out(found.unreadable, len(images))
    content = prediction_json(found, description, user_path(given.data).absolute())
    outputs.write(FILE, json.dumps(content).encode())
    return found, description
