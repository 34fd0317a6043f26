"""One place opens images: allowed formats, bounded memory, metadata that cost nothing, one orientation."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mst.data.sources import ImageIndex
from mst.data.survey import image_facts
from mst.runtime.images import image_header, open_image, orientation, upright

RGB = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)
SOURCES = Path(__file__).parents[2] / "src" / "mst"


def png(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes, *, damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def with_chunk(extra: bytes) -> bytes:
    whole = png()
    return whole[:33] + extra + whole[33:]


def pixels(content: bytes) -> np.ndarray:
    with open_image(content) as image:
        return np.asarray(image.convert("RGB"))


def test_nothing_else_opens_images() -> None:
    pattern = re.compile(r"\bImage\.open\(|exif_transpose")
    found = [path for path in SOURCES.rglob("*.py") if pattern.search(path.read_text()) and path.name != "images.py"]
    assert not found


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(4 << 20))),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(80 << 20))),
        chunk(b"tEXt", b"Comment\0" + b"x" * (3 << 20)),
        chunk(b"gAMA", struct.pack(">I", 45455), damaged=True),
        chunk(b"pHYs", bytes(9), damaged=True),
        chunk(b"eXIf", b"Exif nonsense"),
    ],
    ids=["profile", "zTXt", "iTXt", "tEXt", "gAMA checksum", "pHYs checksum", "EXIF"],
)
def test_metadata_never_cost_the_pixels(extra: bytes) -> None:
    assert np.array_equal(pixels(with_chunk(extra)), RGB)


def test_postscript_is_never_started() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(OSError, match="not an image in a known format"):
        open_image(script)


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(OSError, match="not a file"):
            open_image(tmp_path / name)


def test_claims_are_refused_before_memory_is_taken() -> None:
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    with pytest.raises(ValueError, match="claims too many pixels"):
        open_image(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2
    with pytest.raises(ValueError, match="claims"):
        open_image(webp)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_one_thing(turn: int, form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a"
    Image.fromarray(RGB).save(path, form, exif=exif)
    header = image_header(path)
    assert (header.orientation, header.stored) == (turn, (6, 9))
    assert header.upright == ((9, 6) if turn >= 5 else (6, 9))
    with open_image(path) as image:
        turned = upright(image)
    assert (turned.height, turned.width) == header.upright


def test_a_damaged_orientation_is_none() -> None:
    for value in (0, 9, 300):
        exif = Image.Exif()
        exif[0x0112] = value
        with open_image(png(exif=exif)) as image:
            assert orientation(image) == 1


def test_whatever_a_reader_of_headers_raises_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> Image.Image:
        raise RuntimeError("missing or empty image item")  # as Pillow's AVIF does

    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(ValueError, match="damaged: missing or empty image item"):
        open_image(png())


def test_libraries_write_nothing_about_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "TIFF", compression="tiff_adobe_deflate")
    whole = stream.getvalue()
    for place in range(8, 60):
        path = tmp_path / "a.tif"
        path.write_bytes(whole[:place] + b"\xff\xff" + whole[place + 2 :])
        image_facts(ImageIndex.of([path]), 0)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("orientation", "loads"), [(1, False), (6, True)])
def test_the_header_of_a_png_costs_no_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, loads: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, loaded = tmp_path / "x.png", []
    Image.new("RGB", (8, 4)).save(path, **({"exif": exif} if orientation > 1 else {}))
    load = PngImagePlugin.PngImageFile.load
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: loaded.append(1) or load(image))
    header = image_header(path)
    assert (header.stored, header.orientation) == ((4, 8), orientation)
    assert loads or not loaded
