"""Objectness of attention and of patch tokens, from a COCO folder or drawn scenes to a row of results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mst.data.synthetic.scenes import SceneSet
from mst.data.synthetic.styles import STYLES
from mst.data.value_range import BY_TYPE, Scale, check_range
from mst.errors import UsageError
from mst.evaluate.coco.reading import find_coco, read_coco
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.orientation import Frame
from mst.evaluate.objectness import evaluation as objectness
from mst.evaluate.objectness.evaluation import ObjectnessProtocol
from mst.evaluate.objectness.objects import ObjectSet, coco_objects, scene_objects
from mst.evaluate.objectness.pictures import picture_writer
from mst.model.backbone import Backbone
from mst.paths import PathText
from mst.runtime.limits import check_numbers
from mst.runtime.storage.results import Result
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.subject import Subject

MOST_SCENES = 1_000_000
"""Most scenes: their names are held in memory."""


@dataclass(frozen=True)
class ObjectOptions:
    """Which objects, and whether to draw them.

    Attributes:
        split: part of a COCO folder: annotations/instances_SPLIT.json.
        value_range: black and white among values that are not stored in 8 bits; None = as the backbone was trained.
        limit: at most this many images, spread evenly; None = all.
        strict: refuse an annotation file with records that do not fit; else such records are left out.
        annotations: whether boxes and masks of images with an EXIF orientation belong to the image as it is displayed
            or as it is stored; None = as the sizes in the file tell.
        pictures: folder for a picture of each image and scores.jsonl (those of an earlier evaluation are replaced,
            other files never); None = pictures/objectness (spectral: pictures/patch_objectness) of --out or the run
            folder, where `mst report` looks for them.
        picture_limit: at most this many pictures; 0 = none.
    """

    split: str = "val"
    value_range: tuple[float, float] | None = None
    limit: int | None = None
    strict: bool = False
    annotations: Frame | None = None
    pictures: PathText | None = None
    picture_limit: int = 24

    def __post_init__(self) -> None:
        check_numbers(self, "limit", least=1)
        check_range(self.value_range)
        check_numbers(self, "picture_limit", least=0)


def evaluate_objectness(
    backbone: str | Path | Backbone,
    data: str | Path | ObjectSet,
    *,
    protocol: ObjectnessProtocol | None = None,
    objects: ObjectOptions | None = None,
    settings: FeatureSettings | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Score the patches that a backbone chooses against object masks and boxes; nothing is trained.

    Args:
        backbone: as for `evaluate_knn`.
        data: a folder with `annotations/instances_<split>.json` and images, a COCO JSON file, `scenes:COUNT` or
            `muted-scenes:COUNT` (drawn on the spot), or a set in memory.
        protocol: what chooses the patches, size of the input.
        objects: split, limit, pictures.
        settings: compute type, how many unreadable images are tolerated.
        out: as for `evaluate_knn`.
        device: as for `evaluate_knn`.
        seed: of the scenes, and of the weights after `random:`.

    Returns:
        `Result` as of `mst.evaluate.objectness.evaluation.evaluate_objectness`.

    Raises:
        UsageError: no such data, a record that does not fit, a backbone without importance, ...
        MissingExtra: polygons need the extra `detection`.
    """
    protocol = protocol or ObjectnessProtocol()
    given = EvaluationInput[ObjectSet](backbone, data, settings, out, device, seed)
    subject, options = given.load(), objects or ObjectOptions()
    images, scale = (data, BY_TYPE) if isinstance(data, ObjectSet) else _objects(str(data), subject, options, seed)
    images = images.evenly(options.limit)
    identity = images.fingerprint()
    pictures = subject.pictures(protocol.task, options.pictures)
    mean, std = subject.mean_std
    result = objectness.evaluate_objectness(
        subject.backbone,
        images,
        protocol,
        mean=mean,
        std=std,
        settings=settings,
        watch=picture_writer(pictures, options.picture_limit) if pictures else None,
    )
    return subject.record(result, data, identity, scale)


def _objects(data: str, subject: Subject, options: ObjectOptions, seed: int) -> tuple[ObjectSet, Scale]:
    """Return the images with their objects, and how their values become 8 bits."""
    name, colon, count = data.partition(":")
    if not colon or name not in STYLES:
        coco = read_coco(*find_coco(data, options.split), strict=options.strict, annotations=options.annotations)
        scale = subject.scale(coco.source, options.value_range)
        return coco_objects(coco.with_scale(scale), channels=subject.channels), scale
    if not count.isdecimal() or not 1 <= int(count) <= MOST_SCENES:
        raise UsageError(f"--data {data}: name a number of scenes from 1 to {MOST_SCENES}, for example {name}:200")
    if subject.channels != 3:
        raise UsageError(f"--data {data}: scenes have 3 channels, this backbone takes {subject.channels}")
    return scene_objects(SceneSet(seed, int(count), subject.backbone.spec.image_size, style=STYLES[name])), BY_TYPE
