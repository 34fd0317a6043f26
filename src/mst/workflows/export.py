"""A backbone in the form of another tool, with the measured difference of its features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mst.errors import ConfigError, UsageError
from mst.paths import user_path
from mst.runtime.storage.files import check_folder

if TYPE_CHECKING:
    from mst.model.backbone import Backbone


FORMATS = ("timm",)
CLASSIFIER = "classifier.safetensors"


def export_backbone(backbone: str | Path, out: str | Path, *, form: str = "timm") -> dict[str, Any]:
    """Export a backbone and measure that it gives the same features.

    Args:
        backbone: a run folder or a backbone file.
        out: a new folder.
        form: `timm`.

    Returns:
        format, out, the measured relative `difference` of the features, and `remarks`: lines on what is left out.

    Raises:
        UsageError: the format is unknown, the folder is in use or cannot be opened by timm, or there is no backbone.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    folder = user_path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out {folder} exists and is not an empty folder: name a new one")
    check_folder(folder, "--out")
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--out {folder}: timm opens no folder whose name is not UTF-8: name another") from None

    from mst.export.timm_folder import export_timm  # needs torch
    from mst.model.backbone_file import load_backbone

    network = load_backbone(backbone)
    difference = export_timm(network, folder)
    remarks = [*_left_out(user_path(backbone)), *_sizes(network)]
    return {"format": form, "out": str(folder), "difference": difference, "remarks": remarks}


def _left_out(source: Path) -> list[str]:
    """Return a line on the classifier of a fine-tuned run, which is no part of a backbone."""
    classifier = (source if source.is_dir() else source.parent) / CLASSIFIER
    if not classifier.is_file():
        return []
    return [f"{classifier} is not exported: the folder holds the backbone, which gives features and no classes"]


def _sizes(network: Backbone) -> list[str]:
    """Return a line on the image size, where timm would give other features at another."""
    if network.SAME_AT_ANY_SIZE:
        return []
    height, width = network.spec.image_size
    return [
        f"images of {height}x{width} only: timm's {network.spec.name} pads other sizes in another way than mst "
        "(features differ by some 10 %), so that the exported network refuses them"
    ]
