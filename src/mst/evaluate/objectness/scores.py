"""What the chosen patches of an image are worth against its objects.

Letters: h w patches, H W pixels, M objects.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mst.evaluate.common.boxes import Box, box_iou, largest_component_box, to_pixel_box
from mst.evaluate.objectness.objects import ObjectImage
from mst.evaluate.objectness.pointing import Pointing, point

Patches = NDArray[np.bool_]
"""Which patches [h, w] were chosen."""


class ImageScore(NamedTuple):
    """How well the patches that were chosen in one image fit its objects.

    Attributes:
        name: of the image.
        jaccard: IoU of the chosen patches with the union of the objects; None = they have no masks.
        best_jaccard: IoU with the object that fits best; None likewise.
        box: around the largest connected component.
        box_iou: the best IoU of that box with an object's box.
        area: share of the image that was chosen.
        jaccard_everything: the Jaccard of choosing the whole image; None without masks.
        jaccard_centre: that of a box in the middle, of the area that was chosen; None without masks.
        jaccard_colour: that of patches chosen by their mean colours alone; None without masks, and where attention
            chooses.
        box_iou_colour: `box_iou` likewise; None where attention chooses.
        pointing, pointing_centre, mass_inside, mass_inside_even: see `Pointing`; None without masks, and where a cut
            chooses.
    """

    name: str
    jaccard: float | None
    best_jaccard: float | None
    box: Box
    box_iou: float
    area: float
    jaccard_everything: float | None
    jaccard_centre: float | None
    jaccard_colour: float | None = None
    box_iou_colour: float | None = None
    pointing: bool | None = None
    pointing_centre: bool | None = None
    mass_inside: float | None = None
    mass_inside_even: float | None = None


def score_image(
    name: str,
    patches: Patches,
    item: ObjectImage,
    *,
    by_colour: Patches | None = None,
    importance: Tensor | None = None,
) -> ImageScore:
    """Return the score of the chosen patches [h, w], at least one, at the image's own resolution.

    Args:
        name: of the image.
        patches: which were chosen.
        item: the image and its objects.
        by_colour: those that the patches' mean colours choose, to compare with.
        importance: of the patches [h, w], where it chose them.
    """
    size, counted = item.ignored.shape, ~item.ignored
    chosen = to_pixels(patches, size)
    area = float(chosen.mean())
    truths = None if item.masks is None else item.masks & counted  # [M, H, W]
    union = None if truths is None else np.asarray(np.any(truths, axis=0))  # [H, W]

    def jaccard(pixels: NDArray[np.bool_] | None) -> float | None:
        return None if union is None or pixels is None else _iou(pixels & counted, union)

    box, box_iou = _box(patches, item)
    points = Pointing() if union is None or importance is None else point(importance, union, counted)
    return ImageScore(
        name=name,
        jaccard=jaccard(chosen),
        best_jaccard=None if truths is None else max(_iou(chosen & counted, truth) for truth in truths),
        box=box,
        box_iou=box_iou,
        area=area,
        jaccard_everything=jaccard(counted),
        jaccard_centre=jaccard(centred(size, area)),
        jaccard_colour=None if by_colour is None else jaccard(to_pixels(by_colour, size)),
        box_iou_colour=None if by_colour is None else _box(by_colour, item)[1],
        **points._asdict(),
    )


def _box(patches: Patches, item: ObjectImage) -> tuple[Box, float]:
    """Return the box of the largest component, and its best IoU with an object's box."""
    box = to_pixel_box(largest_component_box(patches), patches.shape, item.ignored.shape)
    return box, max(box_iou(box, (x0, y0, x1, y1)) for x0, y0, x1, y1 in item.boxes.tolist())


def to_pixels(patches: Patches, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return patches [h, w] enlarged to pixels (H, W), each pixel that of its nearest patch."""
    maps = torch.from_numpy(patches)[None, None].float()
    return F.interpolate(maps, size, mode="nearest-exact")[0, 0].numpy() > 0


def centred(size: tuple[int, ...], area: float) -> NDArray[np.bool_]:
    """Return a box in the middle, of the shape of (H, W) and with a share of its pixels, to whole rows and columns."""
    inside = np.zeros(size, dtype=np.bool_)
    spans = [max(1, round(math.sqrt(area) * pixels)) for pixels in size]
    (top, height), (left, width) = (((pixels - span) // 2, span) for pixels, span in zip(size, spans, strict=True))
    inside[top : top + height, left : left + width] = True
    return inside


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
