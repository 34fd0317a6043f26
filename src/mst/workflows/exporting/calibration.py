"""The images that the ranges of int8 are taken from: drawn by the seed from those that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mst.data.decoding import UnreadableImage, read_image
from mst.data.sources import open_images
from mst.errors import DataError
from mst.paths import user_place
from mst.runtime.seeding import generator
from mst.workflows.exporting.onnx_settings import FEWEST_CALIBRATION, OnnxSettings
from mst.workflows.subject import ImageOptions, Subject


@dataclass(frozen=True)
class CalibrationImages:
    """What the ranges of int8 are taken from.

    Attributes:
        pixels: normalised [n, C, H, W].
        said: where they come from, how many were used and left out, the seed of the draw.
    """

    pixels: Tensor
    said: dict[str, Any]


def calibration_images(subject: Subject, settings: OnnxSettings) -> CalibrationImages:
    """Return the images that int8 is calibrated on.

    Raises:
        UsageError: there are no images, or fewer that can be read than `FEWEST_CALIBRATION`.
    """
    source = open_images(user_place(str(settings.calibration)), channels=subject.channels)
    scale, transform = subject.scale(source), subject.transform(ImageOptions())
    order = torch.randperm(len(source), generator=generator(settings.seed, "calibration")).tolist()
    found, unreadable = list[Tensor](), 0
    for index in order:
        if len(found) == settings.calibration_images:
            break
        try:
            found.append(transform(read_image(source, index, channels=subject.channels, scale=scale)))
        except UnreadableImage:
            unreadable += 1
    if len(found) < FEWEST_CALIBRATION:
        raise DataError(
            f"--calibration {settings.calibration}: {len(found)} of {len(source)} images can be read, int8 needs "
            f"{FEWEST_CALIBRATION}"
        )
    said = {"images": str(settings.calibration), "used": len(found), "unreadable": unreadable, "seed": settings.seed}
    return CalibrationImages(torch.stack(found), said)
