"""A picture for each validation image: the annotated objects, and what the detector found."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from mst.errors import RunFailure
from mst.evaluate.coco.masks import mask_of, read_segmentation
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.detection.metrics import Detection
from mst.runtime.logging import warn
from mst.runtime.storage.outputs import Outputs

Shown = tuple[str, tuple[float, float, float, float], NDArray[np.bool_] | None]
"""Caption, box and, where there is one, mask of an object."""
DRAWN_SCORE = 0.5
"""Objects of a lower score are not drawn, unless something else is asked for."""
NUMBERED = r"(\d{4,})-.*\.png"
"""Names of pictures of a validation set."""


def detection_writer(
    outputs: Outputs, limit: int, classes: Sequence[str], *, min_score: float = DRAWN_SCORE, annotated: bool = True
) -> Callable[[CocoImage, Tensor, list[Detection]], None]:
    """Return a function that writes `<number>-<image>.png` for each of the first `limit` images.

    The annotated objects stand left, what was found right.

    Args:
        outputs: where to.
        limit: at most this many pictures.
        classes: names of the labels.
        min_score: what scores less is not drawn.
        annotated: False = the images have no annotations, a picture shows what was found and nothing else.

    Raises:
        UsageError: a file of such a name is there that the command did not write.
    """
    outputs.check_numbered(NUMBERED, limit)
    written, refused = 0, False

    def write(image: CocoImage, pixels: Tensor, detections: list[Detection]) -> None:
        nonlocal written, refused
        if written >= limit or refused:
            return
        picture = overlay(pixels, _found(image, detections, classes, min_score))
        if annotated:
            truth = [
                (classes[item.label], item.box, None if item.segmentation is None else mask_of(item.segmentation))
                for item in image.objects
            ]
            picture = side_by_side(overlay(pixels, truth), picture)
        try:
            outputs.write(f"{written:04d}-{Path(image.name).stem}.png", png(picture), flush=False)
        except RunFailure as error:  # numbers are worth more than pictures
            warn(f"{error}; going on without pictures")
            refused = True
        written += 1

    return write


def png(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def side_by_side(*panels: Image.Image) -> Image.Image:
    """Return pictures of one size in a row, 4 white pixels apart."""
    width, height = panels[0].size
    sheet = Image.new("RGB", (len(panels) * (width + 4) - 4, height), "white")
    for position, panel in enumerate(panels):
        sheet.paste(panel, (position * (width + 4), 0))
    return sheet


def _found(
    image: CocoImage, detections: Iterable[Detection], classes: Sequence[str], min_score: float
) -> Iterator[Shown]:
    for item in detections:
        if item.score >= min_score:
            mask = None if item.mask is None else mask_of(read_segmentation(item.mask, image.size))
            yield f"{classes[item.label]} {item.score:.2f}", item.box, mask


def overlay(pixels: Tensor, shown: Iterable[Shown]) -> Image.Image:
    """Return an image uint8 [C, H, W] with masks, boxes and captions; each object has a colour of its own."""
    rgb = pixels if pixels.shape[0] == 3 else pixels[:1].expand(3, -1, -1)
    canvas = rgb.permute(1, 2, 0).numpy().astype(np.float32)  # [H, W, 3]
    kept = list(shown)
    for number, (_, _, mask) in enumerate(kept):
        if mask is not None:
            canvas[mask] = 0.55 * canvas[mask] + 0.45 * np.asarray(_colour(number))
    picture = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number, (caption, (x0, y0, x1, y1), _) in enumerate(kept):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_colour(number), width=2)
        draw.text((x0 + 3, y0 + 1), caption, fill="white", stroke_width=1, stroke_fill="black")
    return picture


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
