"""Masks as pictures: colours on the image with a legend of the classes that occur, and files of class numbers."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mst.errors import UsageError
from mst.evaluate.detection.pictures import NUMBERED, png, side_by_side
from mst.evaluate.segmentation.data import NO_CLASS
from mst.runtime.storage.outputs import Outputs

GAP, LINE = 4, 16
"""Pixels between entries of the legend, and height of its lines."""
OPACITY = 0.6
TURN, VALUES = 0.618034, (1.0, 0.75, 0.5)
"""Step of the hue from class to class (the golden section of the colour circle), and the brightnesses in turn."""

Watch = Callable[[str, Tensor, Tensor, Tensor], None]
"""(name, image uint8 [C, H, W], truth [H, W], prediction [H, W])."""


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Return a colour for each class [K, 3]."""
    colours = [colorsys.hsv_to_rgb(index * TURN % 1, 0.85, VALUES[index % len(VALUES)]) for index in range(num_classes)]
    return np.asarray(np.round(255 * np.asarray(colours)), dtype=np.uint8)


def overlay(image: Tensor, mask: Tensor, num_classes: int) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3]: the image under the colours of its classes; pixels without a class are dark."""
    rgb = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    pixels = rgb.permute(1, 2, 0).numpy().astype(np.float32)  # [H,W,3]
    known = (mask != NO_CLASS).numpy()[..., None]
    colours = palette(num_classes)[mask.clamp(min=0).numpy()]
    painted = np.where(known, (1 - OPACITY) * pixels + OPACITY * colours, 0.25 * pixels)
    return np.asarray(painted, dtype=np.uint8)


def sheet(image: Tensor, masks: Sequence[Tensor], classes: Sequence[str]) -> Image.Image:
    """Return the image and an overlay for each mask side by side, with the legend below.

    Args:
        image: uint8 [C, H, W].
        masks: classes [H, W], NO_CLASS where there is none.
        classes: names.
    """
    rgb = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    shown = [rgb.permute(1, 2, 0).contiguous().numpy(), *(overlay(image, mask, len(classes)) for mask in masks)]
    panels = side_by_side(*map(Image.fromarray, shown))
    used = np.unique(torch.cat([mask.flatten() for mask in masks]).numpy()).tolist()
    legend = _legend([index for index in used if index != NO_CLASS], classes, panels.width)
    canvas = Image.new("RGB", (panels.width, panels.height + legend.height), "white")
    canvas.paste(panels, (0, 0))
    canvas.paste(legend, (0, panels.height))
    return canvas


def _legend(used: Sequence[int], classes: Sequence[str], width: int) -> Image.Image:
    """Return a strip with the colour and the name of each class."""
    colours, font = palette(len(classes)), ImageFont.load_default()
    places, x, y = [], 2, 2
    for index in used:
        length = LINE + int(font.getlength(classes[index])) + 2 * GAP
        if x > 2 and x + length > width:
            x, y = 2, y + LINE
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + LINE), "white")
    draw = ImageDraw.Draw(strip)
    for index, (left, top) in zip(used, places, strict=True):
        draw.rectangle((left, top, left + LINE - 6, top + LINE - 6), fill=tuple(int(v) for v in colours[index]))
        draw.text((left + LINE - 2, top - 1), classes[index], fill="black", font=font)
    return strip


def sheet_writer(outputs: Outputs, limit: int, classes: Sequence[str]) -> Watch:
    """Return a function that writes `0000-<image>.png`, ... for the first `limit` images: image, truth, prediction.

    Raises:
        UsageError: `limit` is below 0, or a file of such a name is there that the command did not write.
    """
    if limit < 0:
        raise UsageError(f"--picture-limit {limit}: must be at least 0")
    outputs.check_numbered(NUMBERED, limit)
    count = 0

    def write(name: str, image: Tensor, truth: Tensor, prediction: Tensor) -> None:
        nonlocal count
        if count < limit:
            picture = png(sheet(image, (truth, prediction), classes))
            outputs.write(f"{count:04d}-{Path(name).stem.replace(' ', '-')}.png", picture, flush=False)
        count += 1

    return write


def index_picture(mask: Tensor, num_classes: int) -> Image.Image:
    """Return class numbers [H, W] as a picture: 8 bits with a palette, or 16 bits if there are over 256 classes."""
    if num_classes > 256:
        return Image.fromarray(mask.numpy().astype(np.uint16))
    picture = Image.fromarray(mask.numpy().astype(np.uint8), mode="P")
    picture.putpalette(palette(num_classes).flatten().tolist())
    return picture
