"""A picture for each image of the objectness evaluation: what the backbone looks at, and where the objects are."""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from mst.errors import RunFailure
from mst.evaluate.detection.pictures import png, side_by_side
from mst.evaluate.objectness.choosing import Choice
from mst.evaluate.objectness.evaluation import Watcher
from mst.evaluate.objectness.objects import ObjectImage
from mst.evaluate.objectness.scores import ImageScore, to_pixels
from mst.runtime.logging import warn
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.results import append_jsonl, plain_json

TRUTH, FOUND = (60, 220, 90), (255, 190, 40)
"""Colours of the objects' boxes and of the found box."""
SCORES = "scores.jsonl"


def picture_writer(outputs: Outputs, limit: int) -> Watcher:
    """Return a function that writes `0000.png`, ... and a row of `scores.jsonl` for each image.

    A picture has three panels: the image with the objects' boxes (green) and the found one (yellow), how strongly each
    patch was chosen (importance, or the eigenvector on the chosen side), and the chosen patches. Every image gets a
    row, the first `limit` get a picture.

    Raises:
        UsageError: a file of such a name is there that the command did not write.
    """
    outputs.check([SCORES])
    outputs.check_numbered(r"(\d{4,})\.png", limit)
    count, refused = 0, False

    def write(item: ObjectImage, choice: Choice, score: ImageScore) -> None:
        nonlocal count, refused
        if refused:
            return
        try:
            row = {"picture": f"{count:04d}.png" if count < limit else None, **score._asdict()}
            if count == 0:
                outputs.write(SCORES, (json.dumps(plain_json(row), allow_nan=False) + "\n").encode(), grows=True)
            else:
                append_jsonl(outputs.folder / SCORES, row)
            if count < limit:
                outputs.write(f"{count:04d}.png", png(panels(item, choice, score)), flush=False)
        except RunFailure as error:  # numbers are worth more than pictures
            warn(f"{error}; going on without pictures")
            refused = True
        except OSError as error:
            warn(f"cannot write {outputs.folder / SCORES}: {error.strerror or error}; going on without pictures")
            refused = True
        count += 1

    return write


def panels(item: ObjectImage, choice: Choice, score: ImageScore) -> Image.Image:
    """Return the three panels side by side."""
    rgb = item.image if item.image.shape[0] == 3 else item.image[:1].expand(3, -1, -1)
    pixels = rgb.permute(1, 2, 0).numpy()  # [H, W, 3]
    height, width = pixels.shape[:2]
    boxes = Image.fromarray(pixels).copy()
    draw = ImageDraw.Draw(boxes)
    for box in item.boxes.tolist():
        draw.rectangle(_drawable(box), outline=TRUTH)
    draw.rectangle(_drawable(list(score.box)), outline=FOUND, width=2)
    chosen = to_pixels(choice.patches, (height, width))
    heat = F.interpolate(choice.shown[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    heat = heat / heat.amax().clamp(min=1e-12)  # [H, W]
    glow = torch.stack((heat, heat.square(), heat**4), -1).mul(255).byte().numpy()  # black, red, yellow, white
    cut = np.where(chosen[..., None], pixels, pixels // 5)
    return side_by_side(boxes, Image.fromarray(glow), Image.fromarray(cut))


def _drawable(box: list[float]) -> list[float]:
    return [box[0], box[1], max(box[0], box[2] - 1), max(box[1], box[3] - 1)]
