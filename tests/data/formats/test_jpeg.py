"""JPEG: one orientation, whichever way the pixels are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from data.pictures import encoded, texture
from mst.data.decoding import decode_image
from mst.data.formats import jpeg
from mst.data.formats.jpeg import Detail, jpeg_orientation
from mst.runtime.images import open_image, orientation

PLAIN = encoded(texture(), "JPEG", quality=95)


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


def exif(turn: int, order: str = "II") -> bytes:
    little = "little" if order == "II" else "big"
    entry = (0x0112).to_bytes(2, little) + (3).to_bytes(2, little) + (1).to_bytes(4, little)
    entry += turn.to_bytes(2, little) + b"\0\0"
    head = order.encode() + (42).to_bytes(2, little) + (8).to_bytes(4, little) + (1).to_bytes(2, little)
    return app1(b"Exif\0\0" + head + entry + bytes(4))


def xmp(turn: int | None) -> bytes:
    said = "" if turn is None else f'<rdf:Description tiff:Orientation="{turn}"/>'
    return app1(b"http://ns.adobe.com/xap/1.0/\0" + f"<x:xmpmeta>{said}</x:xmpmeta>".encode())


FLIR = app1(b"FLIR\0\x01\0\x01 a thermal camera's own")
SEGMENTS = {
    **{f"EXIF {turn}": exif(turn) for turn in range(1, 9)},
    **{f"EXIF {turn}, big-endian": exif(turn, "MM") for turn in (3, 6, 8)},
    **{f"XMP {turn}": xmp(turn) for turn in (2, 6)},
    "XMP without one, then EXIF": xmp(None) + exif(6),
    "another kind, then EXIF": FLIR + exif(8),
    "EXIF, then XMP": exif(3) + xmp(6),
    "none": b"",
    "EXIF cut short": app1(exif(6)[4:20]),
    "EXIF of another type": app1(exif(6)[4:].replace(b"\x03\0\x01\0\0\0", b"\x04\0\x01\0\0\0")),
    "no more than the kind": app1(b"Exif\0\0"),
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("native", [True, False])
def test_whole_reduced_and_header_agree(
    name: str, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(jpeg, "NATIVE_JPEG", None)
    data = PLAIN[:2] + SEGMENTS[name] + PLAIN[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with open_image(data) as image:
        turn = orientation(image)
        right = ImageOps.exif_transpose(image).convert("RGB")
    assert jpeg_orientation(data) == turn
    whole = decode_image(path)
    assert tuple(whole.shape[1:]) == (right.height, right.width)
    wanted = torch.tensor(list(right.tobytes())).reshape(right.height, right.width, 3).permute(2, 0, 1)
    assert (whole.int() - wanted).abs().float().mean() < 2
    small = decode_image(path, enough=Detail(16, 2))
    assert (small.shape[1] < small.shape[2]) == (right.height < right.width)
    like = torch.nn.functional.interpolate(whole[None].float(), small.shape[1:], mode="area")[0]
    assert (like - small).abs().mean() < 12


@pytest.mark.parametrize("more", [b"", exif(1), exif(1, "MM"), FLIR + exif(1) + xmp(None)])
def test_a_jpeg_that_is_upright_is_not_opened_twice(
    more: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jpeg, "open_image", lambda _: pytest.fail("opened"))
    (tmp_path / "a.jpg").write_bytes(PLAIN[:2] + more + PLAIN[2:])
    assert decode_image(tmp_path / "a.jpg").shape == (3, 40, 56)


@pytest.mark.parametrize("turn", [3, 6, 7])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_four_channels_are_upright(turn: int, form: str, tmp_path: Path) -> None:
    found = Image.Exif()
    found[0x0112] = turn
    stored = texture().convert("RGBA")
    stored.putalpha(128)
    stored.save(tmp_path / "a", form, exif=found, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    with Image.open(tmp_path / "a") as image:
        right = ImageOps.exif_transpose(image)
    wanted = torch.tensor(list(right.tobytes())).reshape(right.height, right.width, 4).permute(2, 0, 1)
    assert torch.equal(decode_image(tmp_path / "a", channels=4).int(), wanted.int())
