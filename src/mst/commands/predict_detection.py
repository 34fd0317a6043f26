"""`mst predict detection`, and the same as a function of the Python API."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from mst.commands.output import emit, emit_json, tell_left_out
from mst.commands.subject import prediction_scale
from mst.commands.tyro_cli import parse_words
from mst.data.sources import index_images
from mst.data.value_range import check_range
from mst.evaluate.coco_masks import coco_mask_library
from mst.evaluate.detection_pictures import detection_writer
from mst.evaluate.detection_prediction import Prediction, predict_objects, prediction_json
from mst.evaluate.detector_file import DetectorDescription, load_detector
from mst.paths import PathText, user_path
from mst.runtime.device import select_device, select_precision
from mst.runtime.limits import check_numbers
from mst.runtime.outputs import Outputs

FILE = "predictions.json"
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class PredictDetectionArguments:
    """Find objects in images without annotations: COCO JSON and pictures.

    Attributes:
        model: the folder of a trained detector: --out or --save-model of `mst evaluate detection`.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: folder for predictions.json and pictures/.
        min_score: what scores less is left out of predictions.json; what scores below 0.05 is in any case.
        picture_score: what scores less is not drawn.
        picture_limit: at most this many pictures; 0 = none, None = one of each image.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of backbone and pyramid.
        progress: show a bar.
        json: one JSON object on stdout.
    """

    model: PathText
    data: PathText
    out: PathText
    min_score: float = 0.05
    picture_score: float = 0.5
    picture_limit: int | None = None
    limit: int | None = None
    value_range: tuple[float, float] | None = None
    device: str = "auto"
    precision: Precision = "auto"
    progress: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "min_score", "picture_score", least=0, most=1)
        check_numbers(self, "picture_limit", least=0)
        check_numbers(self, "limit", least=1)
        check_range(self.value_range)


def predict_detection(
    model: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    min_score: float = 0.05,
    picture_score: float = 0.5,
    picture_limit: int | None = None,
    limit: int | None = None,
    value_range: tuple[float, float] | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
) -> tuple[Prediction, DetectorDescription]:
    """Find objects in every image under `data`; write `predictions.json` and a picture of each image into `out`.

    Args:
        model: folder of a trained detector.
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
        UsageError: no such images, `out` is a file, or holds a file of such a name that no prediction wrote.
        CheckpointError: no detector in `model`, or a damaged one.
        DataError: no image can be read.
        MissingExtra: the extra `detection` is not installed.
    """
    coco_mask_library()
    target = user_path(out)
    outputs, pictures = (Outputs(folder, "predict detection", "--out") for folder in (target, target / "pictures"))
    outputs.check([FILE])
    place = select_device(device, flag="--device")
    detector, description = load_detector(user_path(model), compute=select_precision(precision, place)[0])
    paths = index_images(data, limit=limit, channels=description.spec.channels)
    count = len(paths) if picture_limit is None else picture_limit
    writer = detection_writer(pictures, count, description.classes, min_score=picture_score, annotated=False)
    found = predict_objects(
        detector.to(place),
        description,
        paths,
        min_score=min_score,
        progress=progress,
        watch=writer,
        scale=prediction_scale(paths, description.spec.channels, description.value_ranges, value_range),
    )
    tell_left_out(found.unreadable, len(paths))
    content = prediction_json(found, description, user_path(data).absolute())
    outputs.write(FILE, json.dumps(content).encode())
    return found, description


def run_detection(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(PredictDetectionArguments, argv, prog="mst predict detection")
    if a is None:
        return 0
    found, description = predict_detection(
        a.model,
        a.data,
        out=a.out,
        min_score=a.min_score,
        picture_score=a.picture_score,
        picture_limit=a.picture_limit,
        limit=a.limit,
        value_range=a.value_range,
        device=a.device,
        precision=a.precision,
        progress=a.progress,
    )
    drawn = Counter(item.label for item in found.detections if item.score >= a.picture_score)
    counts = {description.classes[label]: drawn[label] for label in sorted(drawn)}
    file = str(Path(a.out) / FILE)
    if a.json:
        emit_json({"out": file, "images": len(found.images), "objects": counts, "unreadable": list(found.unreadable)})
        return 0
    table = Table("class", f"objects above {a.picture_score:g}", box=None, pad_edge=False)
    for name, number in counts.items():
        table.add_row(name, str(number))
    emit(table, f"{len(found.images)} images, {len(found.detections)} objects above {a.min_score:g} in {file}")
    return 0
