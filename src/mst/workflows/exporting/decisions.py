"""How many k-NN decisions an exported file takes as the backbone does, on labelled images that the user names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mst.data.labelled import LabelOptions
from mst.evaluate.classification.knn import KnnProtocol, knn_predict
from mst.evaluate.common.features import FeatureSettings, extract_features
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.export.reading import load_exported
from mst.model.backbone import Backbone
from mst.workflows.subject import ImageOptions, Subject

MOST_TRAINING, MOST_VALIDATION = 1000, 500
"""Images that decisions are compared on, evenly over the classes; 90 % of 500 has a standard error of 1.3 %."""


@dataclass(frozen=True)
class Decisions:
    """What the backbone itself decides.

    Attributes:
        name: of the labelled images, as given.
        sets: of them.
        transform: of the images.
        classes: that the backbone decides for, of each readable validation image [n].
        labels: the true ones [n].
    """

    name: str
    sets: LabelledSets
    transform: ImageTransform
    classes: Tensor
    labels: Tensor

    @staticmethod
    def of(subject: Subject, data: str | Path) -> Decisions:
        """Return the decisions of a backbone on labelled images.

        Raises:
            UsageError, DataError: no labelled images there, or one class only.
        """
        sets = LabelledSets.from_folder(
            data,
            channels=subject.channels,
            ranges=subject.known_ranges(None),
            train_limit=MOST_TRAINING,
            val_limit=MOST_VALIDATION,
            labels=LabelOptions(),
        )
        sets.check_classes()
        transform = subject.transform(ImageOptions())
        return Decisions(str(data), sets, transform, *_decided(subject.backbone, sets, transform))


def compare_decisions(own: Decisions, file: Path) -> dict[str, Any]:
    """Return for how many validation images k-NN on an exported file's features decides as on the backbone's.

    Training and validation features come from the same file, as in use.

    Args:
        own: of the backbone.
        file: of the export.

    Returns:
        agreement, top1 of the file and of the backbone (percent), and what they were measured with.
    """
    classes, labels = _decided(load_exported(file)[0], own.sets, own.transform)
    protocol = KnnProtocol()
    return {
        "agreement": _percent(classes == own.classes),
        "top1": _percent(classes == labels),
        "top1_backbone": _percent(own.classes == own.labels),
        "k": min(protocol.headline, len(own.sets.train)),
        "temperature": protocol.temperature,
        "data": own.name,
        "train_images": len(own.sets.train),
        "val_images": len(labels),
        "transform": asdict(own.transform),
    }


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())


def _decided(backbone: Backbone, sets: LabelledSets, transform: ImageTransform) -> tuple[Tensor, Tensor]:
    """Return the class that k-NN decides for and the true one, for each readable validation image."""
    settings, protocol = FeatureSettings(precision="fp32"), KnnProtocol()
    train, val = (
        extract_features(backbone, images, transform, settings=settings, title=f"{title} features")
        for title, images in (("training", sets.train), ("validation", sets.val))
    )
    scores = knn_predict(
        train.features,
        train.labels,
        val.features,
        num_neighbors=protocol.headline,
        temperature=protocol.temperature,
        num_classes=len(sets.classes),
    )
    return scores.argmax(dim=1), val.labels
