"""Every kind of mask file gives the class numbers that were drawn, or is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mst.errors import DataError
from mst.evaluate.segmentation.mask_files import Labels, mask_size, read_mask
from mst.runtime.images import image_header

TRUTH = np.arange(48).reshape(6, 8) % 3
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 64, 255]], np.uint8)
PACKED = {0x000000: 0, 0x800000: 1, 0x0040FF: 2}
PLAIN = Labels(("a", "b", "c"))
COLOURED = Labels(("a", "b", "c"), 255, PACKED)
PICTURE = COLOURS[TRUTH]
OPAQUE = np.full((6, 8, 1), 255, np.uint8)


def palette(colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(TRUTH.astype(np.uint8), mode="P")
    image.putpalette(colours.flatten().tolist())
    return image


GREY = np.repeat(TRUTH[..., None], 3, 2).astype(np.uint8)
KINDS: dict[str, tuple[Image.Image, Labels]] = {
    "grey": (Image.fromarray(TRUTH.astype(np.uint8)), PLAIN),
    "grey beside colours": (Image.fromarray(TRUTH.astype(np.uint8)), COLOURED),
    "16 bits": (Image.fromarray(TRUTH.astype(np.uint16)), PLAIN),
    "equal channels": (Image.fromarray(GREY), PLAIN),
    "equal channels, opaque": (Image.fromarray(np.concatenate([GREY, OPAQUE], 2)), PLAIN),
    "grey and opaque": (Image.fromarray(np.concatenate([GREY[..., :1], OPAQUE], 2)), PLAIN),
    "colours": (Image.fromarray(PICTURE), COLOURED),
    "colours, opaque": (Image.fromarray(np.concatenate([PICTURE, OPAQUE], 2)), COLOURED),
    "palette": (palette(COLOURS), PLAIN),
    "palette of the colours": (palette(COLOURS), COLOURED),
    "palette of other colours": (palette(COLOURS + 7), COLOURED),
    "palette in another order": (
        Image.fromarray(PICTURE).convert("P", palette=Image.Palette.ADAPTIVE, colors=3),
        COLOURED,
    ),
    "grey colours": (
        Image.fromarray((100 * TRUTH).astype(np.uint8)),
        Labels(("a", "b", "c"), None, {0: 0, 0x646464: 1, 0xC8C8C8: 2}),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_kinds(tmp_path: Path, kind: str, suffix: str) -> None:
    image, labels = KINDS[kind]
    path = tmp_path / f"m.{suffix}"
    image.save(path)
    assert mask_size(path) == (6, 8)
    assert read_mask(path, (6, 8), labels).tolist() == TRUTH.tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path: Path, bits: int) -> None:
    rows = [int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(bits, "big") for row in TRUTH]
    header = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    assert read_mask(tmp_path / "m.png", (6, 8), PLAIN).tolist() == TRUTH.tolist()


def test_arrays_and_deep_tiffs(tmp_path: Path) -> None:
    for kind in (np.uint8, np.int64, np.uint16):
        np.save(tmp_path / "m.npy", TRUTH.astype(kind))
        assert read_mask(tmp_path / "m.npy", (6, 8), PLAIN).tolist() == TRUTH.tolist()
    assert mask_size(tmp_path / "m.npy") == (6, 8)
    tifffile = pytest.importorskip("tifffile")
    for kind in (np.uint8, np.uint16, np.uint32, np.int16):
        tifffile.imwrite(tmp_path / "m.tif", TRUTH.astype(kind))
        assert read_mask(tmp_path / "m.tif", (6, 8), PLAIN).tolist() == TRUTH.tolist()


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"

    def refused(image: Image.Image, labels: Labels, message: str, **saved: object) -> None:
        image.save(path, **saved)
        with pytest.raises(DataError, match=message):
            read_mask(path, (6, 8), labels)

    wrong = PICTURE.copy()
    wrong[2, 5] = 1, 2, 3
    refused(Image.fromarray(wrong), COLOURED, r"m\.png: colour \(1, 2, 3\) at row 2, column 5 is the colour of no")
    refused(Image.fromarray(PICTURE), PLAIN, r'give "colors"')
    refused(Image.fromarray(GREY), PLAIN, "a JPEG changes the numbers", format="JPEG")
    black_and_white = Image.fromarray((255 * (TRUTH > 0)).astype(np.uint8))
    refused(black_and_white, Labels(("a", "b")), r'255 is no class of 0\.\.1 .*white is a class with "colors"')
    black_and_white.save(path)
    white = Labels(("a", "b"), None, {0: 0, 0xFFFFFF: 1})
    assert read_mask(path, (6, 8), white).tolist() == (TRUTH > 0).astype(int).tolist()
    clear = np.concatenate([GREY, OPAQUE], 2)
    clear[1, 1, 3] = 90
    refused(Image.fromarray(clear), PLAIN, r"row 1, column 1 is transparent \(1 such")
    mixed = palette(np.array([[0, 64, 255], [9, 9, 9], [128, 0, 0]], np.uint8))
    refused(mixed, COLOURED, r"colour \(9, 9, 9\)")
    np.save(tmp_path / "f.npy", TRUTH.astype(np.float32))
    with pytest.raises(DataError, match="an array of float32"):
        read_mask(tmp_path / "f.npy", (6, 8), PLAIN)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_turn_with_their_image_and_by_their_own_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(TRUTH.astype(np.uint8))
    stored.save(tmp_path / "image.png", exif=exif)
    stored.save(tmp_path / "mask.png")
    stored.save(tmp_path / "own.png", exif=exif)
    header = image_header(tmp_path / "image.png")
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "image.png")))
    turned = read_mask(tmp_path / "mask.png", header.upright, PLAIN, image=header, frame="stored")
    own = read_mask(tmp_path / "own.png", header.upright, PLAIN, image=header, frame="displayed")
    assert turned.tolist() == own.tolist()
    assert mask_size(tmp_path / "own.png") == header.upright
    assert turned.tolist() == upright.tolist()
    if orientation > 4:
        with pytest.raises(DataError, match=f"EXIF turns the image .orientation {orientation}"):
            read_mask(tmp_path / "mask.png", header.upright, PLAIN, image=header, frame="displayed")
