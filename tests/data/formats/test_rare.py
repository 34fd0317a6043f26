"""Rare formats by content, damaged ones refused; of animations and pages the first."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from data.pictures import DAMAGES, damaged, decode_or_refuse, encoded, texture
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.files.kinds import begins_as_image
from mst.data.packing.pack import PackOptions, pack
from mst.data.sources import open_images
from mst.runtime.images import FORMATS

RGB = texture()
VALUES = np.asarray(RGB)  # [40, 56, 3]


def sun() -> bytes:
    header = struct.pack(">8I", 0x59A66A95, 56, 40, 24, VALUES.size, 1, 0, 0)
    return header + np.ascontiguousarray(VALUES[..., ::-1]).tobytes()


def psd() -> bytes:
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 40, 56, 8, 3)
    return header + bytes(12) + bytes(2) + np.ascontiguousarray(VALUES.transpose(2, 0, 1)).tobytes()


def qoi() -> bytes:
    pixels = b"".join(b"\xfe" + bytes(pixel) for pixel in VALUES.reshape(-1, 3).tolist())
    return b"qoif" + struct.pack(">IIBB", 56, 40, 3, 0) + pixels + bytes(7) + b"\1"


FILES = {
    "SUN": sun,
    "PSD": psd,
    "QOI": qoi,
    **{form: lambda form=form: encoded(RGB, form) for form in ("SGI", "PCX", "DDS", "TGA")},
}


@pytest.mark.parametrize("form", FILES)
def test_rare_formats(tmp_path: Path, form: str) -> None:
    data = FILES[form]()
    path = tmp_path / "a.jpg"  # the content counts
    path.write_bytes(data)
    assert torch.equal(decode_image(path), torch.from_numpy(VALUES.copy()).permute(2, 0, 1))
    assert decode_image(path, channels=1).shape == (1, 40, 56)
    assert begins_as_image(data[:32]) is (form != "TGA")
    assert form in FORMATS


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_ones_are_read_or_refused(tmp_path: Path, form: str, kind: str) -> None:
    draws = np.random.default_rng(len(form) + len(kind))
    for number in range(6):
        path = tmp_path / f"{number}.{form.lower()}"
        path.write_bytes(damaged(FILES[form](), kind, draws))
        decode_or_refuse(path)


def test_what_says_nothing_of_itself_is_no_image(tmp_path: Path) -> None:
    old = encoded(RGB, "TGA")[:-26]
    for number, data in enumerate((old, b"\n\n some text\n" * 9, bytes(range(256)) * 3)):
        (tmp_path / f"{number}.tga").write_bytes(data)
        with pytest.raises(UnreadableImage, match="not an image in a known format"):
            decode_image(tmp_path / f"{number}.tga")


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000"])
def test_new_formats_where_pillow_has_them(tmp_path: Path, form: str) -> None:
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[form]):
        pytest.skip("this Pillow has none")
    path = tmp_path / "without_extension"
    path.write_bytes(encoded(RGB, form))
    assert decode_image(path).shape == (3, 40, 56)
    assert len(open_images(tmp_path, by_content=True, tell=False)) == 1


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_or_page(tmp_path: Path, form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has none")
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((200, 30, 60), (10, 220, 30), (5, 5, 250))]
    path = tmp_path / f"a.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:])
    found = decode_image(path).float().mean((1, 2))
    assert (found - torch.tensor([200.0, 30.0, 60.0])).abs().max() < 8
    pack(open_images(tmp_path, tell=False), tmp_path / "out", PackOptions())
