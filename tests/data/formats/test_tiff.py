"""TIFFs of every layout: the pixels that were written, or a refusal."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mst.data.decoding import OtherChannels, UnreadableImage, decode_image
from mst.data.value_range import ValueRanges
from mst.errors import MissingExtra

tifffile = pytest.importorskip("tifffile")
SEED = np.random.default_rng(0)
RGB = SEED.integers(256, size=(20, 30, 3), dtype=np.uint8)
WIDE = RGB.astype(np.uint16) * 257


def decoded(path: Path, values: Any, channels: int = 3, **options: Any) -> np.ndarray:
    tifffile.imwrite(path, values, **options)
    return decode_image(path, channels=channels).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "lzw"},
        {"planarconfig": "separate", "compression": "zlib", "predictor": True},
        {"planarconfig": "contig"},
        {"planarconfig": "contig", "tile": (16, 16)},
        {"planarconfig": "contig", "byteorder": ">"},
        {"planarconfig": "separate", "bigtiff": True, "byteorder": ">"},
    ],
)
def test_colours_of_sixteen_bits(options: dict[str, Any], tmp_path: Path) -> None:
    values = WIDE.transpose(2, 0, 1) if options["planarconfig"] == "separate" else WIDE
    written = decoded(tmp_path / "a.tif", np.ascontiguousarray(values), photometric="rgb", **options)
    assert np.array_equal(written, RGB)


@pytest.mark.parametrize("compression", ["jpeg2000", "png", "jpegxl", "webp"])
def test_compressions_that_pillow_does_not_know(compression: str, tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    lossless = {"compressionargs": {"lossless": True}} if compression in {"webp", "jpegxl"} else {}
    found = decoded(tmp_path / "a.tif", RGB, photometric="rgb", compression=compression, **lossless)
    assert np.array_equal(found, RGB)


def test_colours_over_white(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30, 1), np.uint16)
    alpha[:, 15:] = 65535
    rgba = np.concatenate([WIDE, alpha], axis=2)
    found = decoded(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert (found[:, :15] == 255).all()
    assert np.array_equal(found[:, 15:], RGB[:, 15:])


@pytest.mark.parametrize("bands", [2, 4, 5, 6, 7, 8, 12, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_number_of_bands(bands: int, planar: str, dtype: type, tmp_path: Path) -> None:
    values = SEED.integers(256, size=(9, 11, bands), dtype=np.uint8)
    stored = (values.astype(np.uint16) * 257).astype(dtype) if dtype is np.uint16 else values
    stored = np.ascontiguousarray(stored.transpose(2, 0, 1)) if planar == "separate" else stored
    found = decoded(tmp_path / "a.tif", stored, bands, photometric="minisblack", planarconfig=planar)
    assert np.array_equal(found, values)
    with pytest.raises(OtherChannels, match=f"has {bands} channels"):
        decode_image(tmp_path / "a.tif", channels=bands + 30)


def test_three_bands_without_colours_are_read_as_they_are(tmp_path: Path) -> None:
    found = decoded(tmp_path / "a.tif", RGB, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(found, RGB)
    with pytest.raises(OtherChannels):
        decode_image(tmp_path / "a.tif", channels=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(dtype: type, tmp_path: Path) -> None:
    grey = RGB[..., 0]
    stored = (255 - grey) if dtype is np.uint8 else 65535 - WIDE[..., 0]
    found = decoded(tmp_path / "a.tif", stored, 1, photometric="miniswhite")
    assert np.array_equal(found[..., 0], grey)


def test_twelve_bits_reach_white(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    values = np.linspace(0, 4095, 600).round().astype(np.uint16).reshape(20, 30)
    found = decoded(tmp_path / "a.tif", values, 1, photometric="minisblack", bitspersample=12)
    assert np.array_equal(found[..., 0], np.rint(values / 4095 * 255))


def test_floats_of_colours(tmp_path: Path) -> None:
    found = decoded(tmp_path / "a.tif", (RGB / 255).astype(np.float32), photometric="rgb")
    assert np.array_equal(found, RGB)


def test_pages_of_bands_are_channels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB, photometric="minisblack", planarconfig="contig")
        file.write(RGB[..., :2], photometric="minisblack", planarconfig="contig")
    found = decode_image(tmp_path / "a.tif", channels=5).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.concatenate([RGB, RGB[..., :2]], axis=2))


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_as_pillow_has_it(turn: int, tmp_path: Path) -> None:
    plain = decoded(tmp_path / "plain.tif", RGB, photometric="rgb", extratags=[(274, "H", 1, turn, True)])
    wide = decoded(
        tmp_path / "wide.tif",
        np.ascontiguousarray(WIDE.transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
        extratags=[(274, "H", 1, turn, True)],
    )
    assert np.array_equal(wide, plain)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (RGB[..., 0].astype(np.uint32), "uint32 pixels from"),
        (RGB[..., 0].astype(np.int16), "int16 pixels from"),
        (RGB[..., 0].astype(np.int32), "int32 pixels from"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused(values: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=f"{said}.*what is white among them is not known"):
        decoded(tmp_path / "a.tif", values, photometric="minisblack")


def test_without_tifffile_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(WIDE.transpose(2, 0, 1)), photometric="rgb")
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'mst-pretrain\[tiff\]'"):
        decode_image(tmp_path / "a.tif")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_bytes_are_a_refusal(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, WIDE.transpose(2, 0, 1), photometric="rgb", compression="zlib" if seed % 2 else None)
    content = bytearray(path.read_bytes())
    for _ in range(1 + seed % 5):
        content[draw.integers(len(content))] = draw.integers(256)
    if seed % 7 == 0:
        del content[draw.integers(len(content)) :]
    path.write_bytes(content)
    try:
        assert decode_image(path).shape[0] == 3
    except UnreadableImage:
        return


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_thirty_two_bits_in_either_order(
    dtype: type, compression: str | None, predictor: bool, order: str, tmp_path: Path
) -> None:
    values = RGB[..., 0].astype(dtype)
    options: dict[str, Any] = {"compression": compression, "predictor": predictor} if compression else {}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, byteorder=order, photometric="minisblack", **options)
    found = decode_image(path, channels=1, scale=ValueRanges.given((0, 255)))
    assert np.array_equal(found[0].numpy(), RGB[..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [1, 3])
def test_colours_that_are_multiplied_by_their_opacity(dtype: type, planar: str, bands: int, tmp_path: Path) -> None:
    opacity = SEED.integers(256, size=(20, 30, 1))
    multiplied = np.rint(RGB[..., :bands] * (opacity / 255))
    right = (multiplied + 255 - opacity).clip(0, 255).astype(np.uint8)
    values = np.concatenate([multiplied, opacity], axis=2).astype(dtype) * dtype(257 if dtype is np.uint16 else 1)
    found = decoded(
        tmp_path / "a.tif",
        values if planar == "contig" else values.transpose(2, 0, 1),
        bands,
        photometric="rgb" if bands == 3 else "minisblack",
        planarconfig=planar,
        extrasamples=["assocalpha"],
    )
    assert np.abs(found.astype(int) - right).max() <= (1 if dtype is np.uint8 else 0)


def test_deep_png_of_four_channels_keeps_its_range(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = SEED.integers(4096, size=(20, 30, 4)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    found = decode_image(tmp_path / "a.png", channels=4, scale=ValueRanges.given((0, 4095)))
    assert np.abs(found.permute(1, 2, 0).numpy() - values * (255 / 4095)).max() <= 0.5
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(values[..., [0, 3]].copy()))
    assert decode_image(tmp_path / "b.png", channels=2).shape == (2, 20, 30)
    with pytest.raises(OtherChannels, match="has 2 channels, 4 are asked for"):
        decode_image(tmp_path / "b.png", channels=4)


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_palettes_of_eight_and_of_sixteen_bits(scale: int, tmp_path: Path) -> None:
    colours = SEED.integers(256, size=(3, 256)).astype(np.uint16)
    places = RGB[..., 0]
    found = decoded(tmp_path / "a.tif", places, photometric="palette", colormap=colours * np.uint16(scale))
    assert np.array_equal(found, colours[:, places].transpose(1, 2, 0))
