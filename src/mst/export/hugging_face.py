"""A backbone for Hugging Face's transformers: `AutoModel`, `AutoImageProcessor` and pipelines load the folder.

transformers reads folders of timm itself through its class `TimmWrapperModel`, which holds timm's network: all
families, importance of the position embedding and pooling included, stay what they are, and no weight is renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mst.errors import MissingExtra, RunFailure
from mst.export.classifier import Head
from mst.export.timm_folder import write_timm
from mst.model.backbone import Backbone
from mst.runtime.storage.files import write_atomic

CARD = "README.md"


def transformers() -> Any:
    """Return the library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingExtra("transformers", "transformers") from error


def write_hugging_face(backbone: Backbone, folder: Path, card: str, head: Head | None = None) -> None:
    """Write the folder, with a model card; with a head for `AutoModelForImageClassification`.

    Raises:
        RunFailure: the disk refused.
    """
    write_timm(backbone, folder, head)
    write_atomic(folder / CARD, card)


@torch.no_grad()
def hugging_face_outputs(folder: Path, images: Tensor, classes: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return what `AutoModel.from_pretrained(FOLDER)` gives: `pooler_output`; with classes, the logits of a classifier.

    Raises:
        RunFailure: transformers does not load it, or with other names of classes.
    """
    library = transformers()
    loader = library.AutoModelForImageClassification if classes else library.AutoModel
    try:
        model = loader.from_pretrained(folder, local_files_only=True).eval()
    except (RuntimeError, ValueError, KeyError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailure(f"transformers {library.__version__} does not load what was written: {reason}") from error
    if classes:
        if (named := model.config.id2label) != dict(enumerate(classes)):
            raise RunFailure(f"transformers {library.__version__} reads other classes than were written: {named}")
        return {"logits": model(pixel_values=images).logits}
    return {"features": model(pixel_values=images).pooler_output}
