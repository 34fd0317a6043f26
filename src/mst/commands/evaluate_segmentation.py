"""`mst evaluate segmentation`, and the same as a function of the Python API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mst.commands.evaluation import Common, show
from mst.commands.subject import load_subject
from mst.commands.tyro_cli import parse_words
from mst.evaluate import patch_segmentation
from mst.evaluate.features import FeatureSettings
from mst.evaluate.patch_segmentation import SegmentationProtocol
from mst.evaluate.segmentation_data import SegmentationData, segmentation_folder
from mst.model.backbone import Backbone
from mst.runtime.results import Result


@dataclass(frozen=True)
class SegmentationArguments(Common):
    """Linear segmentation on patch tokens of images/, masks/, train.txt, val.txt, classes.json."""

    protocol: SegmentationProtocol = field(default_factory=SegmentationProtocol)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


def evaluate_segmentation(
    backbone: str | Path | Backbone,
    data: str | Path | SegmentationData,
    *,
    protocol: SegmentationProtocol | None = None,
    settings: FeatureSettings | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Train a linear layer on frozen patch tokens and score it per pixel on the validation images.

    Args:
        backbone: as for `evaluate_knn`.
        data: a folder with `images/`, `masks/`, `train.txt`, `val.txt` and `classes.json`, or pairs in memory.
        protocol: size, steps, batch size, learning rate.
        settings: batch size, threads, compute type.
        out: as for `evaluate_knn`.
        device: as for `evaluate_knn`.
        seed: of the layer's weights and the order of the images.

    Returns:
        `Result` with `miou`, `macc`, `aacc` in percent and a row per class in `extra["per_class"]`.

    Raises:
        UsageError: a part of the folder is missing, a mask does not fit its image or has an unknown value, ...
    """
    subject = load_subject(backbone, device=device, seed=seed)
    pairs = data if isinstance(data, SegmentationData) else segmentation_folder(Path(data), channels=subject.channels)
    mean, std = subject.mean_std
    result = patch_segmentation.evaluate_patch_segmentation(
        subject.backbone, pairs, protocol, mean=mean, std=std, settings=settings, seed=seed
    )
    return subject.record(result, out)


def run_segmentation(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(SegmentationArguments, argv, prog="mst evaluate segmentation")
    if a is None:
        return 0
    result = evaluate_segmentation(
        a.backbone, a.data, protocol=a.protocol, settings=a.settings, out=a.out, device=a.device, seed=a.seed
    )
    return show(result, json=a.json)
