"""The images that exports are measured on: the user's, those of the run, or drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from mst.data.decoding import UnreadableImage, read_image
from mst.data.sources import ImageSource, open_images
from mst.data.synthetic.scenes import make_scene
from mst.errors import DataError, UsageError
from mst.export.parity import Images
from mst.paths import user_place
from mst.runtime.storage.rundir import RunDir
from mst.workflows.subject import ImageOptions, Subject

MEASURED_ON = 16
"""Images that a difference is measured on."""
SCENE = 128
"""Shortest side of a drawn scene in pixels."""


def measuring_images(subject: Subject, given: str | Path | None, *, flag: str, count: int = MEASURED_ON) -> Images:
    """Return images for a backbone: those under `given`, else those its run was trained on, else drawn scenes.

    Args:
        subject: says size, channels, normalisation, and where its run lies.
        given: a folder or whatever else images come from; None = not given.
        flag: the option that named them, for the messages.
        count: at most this many, drawn evenly.

    Raises:
        UsageError: there are no images under `given`, or none can be read.
    """
    if given:
        return _read(subject, open_images(user_place(given), limit=count, channels=subject.channels), str(given), flag)
    stored = _stored(subject)
    if stored:
        try:
            source = open_images(stored, limit=count, channels=subject.channels)
            return _read(subject, source, f"images of the run ({stored})", flag)
        except UsageError:  # moved since, or of a kind that needs more than a path
            pass
    return _scenes(subject, count)


def _read(subject: Subject, source: ImageSource, said: str, flag: str) -> Images:
    scale = subject.scale(source)
    raw: list[Tensor] = []
    for index in range(len(source)):
        try:
            raw.append(read_image(source, index, channels=subject.channels, scale=scale))
        except UnreadableImage:
            continue
    if not raw:
        raise DataError(f"{flag} {said}: none of {len(source)} images can be read")
    return _prepared(subject, raw, said)


def _stored(subject: Subject) -> str | None:
    """Return what the run of a backbone says its images are."""
    if subject.folder is None:
        return None
    try:
        values = json.loads(RunDir(subject.folder).config.read_text(encoding="utf-8"))
        found = values.get("data", {}).get("train") or values.get("settings", {}).get("data")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(found, list) and len(found) == 1:  # of several, none speaks for all
        found = found[0]
    return found if isinstance(found, str) and Path(found).exists() else None


def _scenes(subject: Subject, count: int) -> Images:
    size = tuple(max(side, SCENE) for side in subject.backbone.spec.image_size)
    raw = []
    for index in range(count):
        image = torch.from_numpy(make_scene(0, index, (size[0], size[1])).image)  # [3, H, W]
        raw.append(image[[channel % 3 for channel in range(subject.channels)]])
    return _prepared(subject, raw, "drawn scenes (no images given: --images)")


def _prepared(subject: Subject, raw: list[Tensor], said: str) -> Images:
    transform = subject.transform(ImageOptions())
    return Images(torch.stack([transform(image) for image in raw]), tuple(raw), said)
