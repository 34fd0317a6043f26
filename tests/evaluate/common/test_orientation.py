"""Annotations turn as Pillow turns the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.evaluate.common.orientation import agreed_frame, frame_of, upright_box, upright_point
from mst.runtime.images import image_header, open_image, turned, upright

SIZE = (12, 20)  # H, W
BOX = (3, 1, 11, 5)  # x0, y0, x1, y1


def turned_file(path: Path, orientation: int, pixels: np.ndarray) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_points_and_masks_follow_the_pixels(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    file = turned_file(tmp_path / "a.png", orientation, pixels)
    header = image_header(file)
    assert header.orientation == orientation
    shown = np.asarray(upright(open_image(file)))
    x0, y0, x1, y1 = map(int, upright_box(BOX, header))
    expected = np.zeros(header.upright, np.uint8)
    expected[y0:y1, x0:x1] = 255
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(turned(pixels, orientation), shown)
    corner = upright_point(BOX[0], BOX[1], header)
    assert corner in {(x0, y0), (x1, y0), (x0, y1), (x1, y1)}


def test_the_size_tells_where_the_sides_change_places(tmp_path: Path) -> None:
    zeros = np.zeros(SIZE, np.uint8)
    turned = image_header(turned_file(tmp_path / "a.png", 6, zeros))
    assert frame_of(turned, SIZE) == "stored"
    assert frame_of(turned, SIZE[::-1]) == "displayed"
    assert frame_of(turned, (5, 5)) is None
    assert frame_of(image_header(turned_file(tmp_path / "b.png", 3, zeros)), SIZE) == "either"
    assert frame_of(image_header(turned_file(tmp_path / "c.png", 1, zeros)), SIZE) == "displayed"
    square = image_header(turned_file(tmp_path / "d.png", 8, np.zeros((9, 9), np.uint8)))
    assert frame_of(square, (9, 9)) == "either"


def test_images_that_do_not_tell_follow_the_others() -> None:
    assert agreed_frame(["either", "stored", None]) == "stored"
    assert agreed_frame(["either", "stored", "displayed"]) == "displayed"
    assert agreed_frame(["either"]) == "displayed"
