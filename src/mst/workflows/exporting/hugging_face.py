"""A folder for transformers: weights, image processor, model card, and what was measured of them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mst.export.classifier import Head
from mst.export.hugging_face import processor_difference, transformers, write_hugging_face
from mst.export.network import expected
from mst.export.parity import Images, measure
from mst.model.backbone_file import describe
from mst.runtime.storage.files import write_atomic
from mst.workflows.exporting.card import CARD, CLASSES, FEATURES, card
from mst.workflows.exporting.settings import ExportSettings
from mst.workflows.subject import Subject

DESCRIPTION = "model.json"


@torch.no_grad()
def write_folder(
    subject: Subject, images: Images, place: Path, settings: ExportSettings, head: Head | None = None
) -> dict[str, Any]:
    """Write a backbone, with or without a classifier, into a folder; return what was measured of it.

    Raises:
        MissingExtra: transformers is not installed.
        RunFailure: it gives other numbers, or does not load what was written.
    """
    library, backbone = transformers(), subject.backbone
    wanted = expected(backbone, images.pixels, ("features", "patch_tokens"))
    if head is not None:
        wanted["logits"] = head.layer(wanted["features"])
    written = write_hugging_face(backbone, place, images.pixels, wanted, head)
    parity = measure("hf", f"transformers {library.__version__}", images, wanted, written.outputs)
    said: dict[str, Any] = {} if head is None else {"classes": list(head.classes)}
    said |= {} if written.native is None else {"transformers": written.native.kind}
    write_atomic(place / DESCRIPTION, describe(backbone.spec, backbone.metadata, said))
    pixels = processor_difference(place, images, subject.mean_std[1])
    task = FEATURES if head is None else CLASSES
    write_atomic(place / CARD, card(subject, settings.license, task, written.native, pixels))
    return {**parity.to_json(), **written.to_json(), "processor": pixels}
