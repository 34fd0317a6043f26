"""Small pictures of images for a page, as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from mst.data.decoding import UnreadableImage, read_image
from mst.data.formats.jpeg import Detail
from mst.data.sources import ImageSource
from mst.data.value_range import Scale

SIDE = 128


def thumbnail(images: ImageSource, position: int, channels: int, scale: Scale) -> str:
    """Return an image as a JPEG of at most `SIDE` pixels, "" where it cannot be read.

    Of images with other numbers of channels than 3 the first is shown.
    """
    try:
        pixels = read_image(images, position, channels=channels, enough=Detail(SIDE * SIDE, SIDE), scale=scale)
    except UnreadableImage:
        return ""
    values = pixels.permute(1, 2, 0).numpy()  # [H, W, C]
    picture = Image.fromarray(np.ascontiguousarray(values if values.shape[2] == 3 else values[..., 0]))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
