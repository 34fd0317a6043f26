"""Value ranges: every kind of stored number comes out as the grey it means, or is refused with a reason."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mst.data import value_range
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.formats import large as large_images
from mst.data.sources import ImageIndex
from mst.data.statistics import channel_statistics, measured_ranges
from mst.data.value_range import ValueRanges, likely_range
from mst.errors import DataError

RAMP = np.tile(np.linspace(0, 1, 52), (40, 1))
"""[40, 52], black to white."""


def grey(values: Any, low: float, high: float) -> np.ndarray:
    return np.rint((np.asarray(values, np.float64) - low) / (high - low) * 255).astype(np.uint8)


def png16(path: Path, values: np.ndarray) -> Path:
    """Write uint16 [H, W, C] as a PNG of 16 bits, C = 2 (grey, opacity), 3 or 4."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    )
    return path


def npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def ranges_of(*paths: Path, channels: int = 1, **known: Any) -> ValueRanges:
    return measured_ranges(ImageIndex.of(paths), channels=channels, known=ValueRanges(**known))


def read(path: Path, ranges: ValueRanges, channels: int = 1) -> np.ndarray:
    return decode_image(path, channels=channels, scale=ranges).numpy()


@pytest.mark.parametrize(
    ("dtype", "top", "range_"),
    [
        (np.uint16, 255, (0, 255)),
        (np.uint16, 1023, (0, 1023)),
        (np.uint16, 4095, (0, 4095)),
        (np.uint16, 3100, (0, 4095)),
        (np.uint16, 16383, (0, 16383)),
        (np.uint16, 65535, (0, 65535)),
        (np.int16, 255, (0, 255)),
        (np.int16, 4095, (0, 4095)),
        (np.int16, 32767, (0, 32767)),
        (np.int8, 126, (0, 127)),
        (np.int32, 255, (0, 255)),
        (np.uint32, 255, (0, 255)),
        (np.int64, 252, (0, 255)),
        (np.uint64, 65535, (0, 65535)),
        (np.uint32, 2**32 - 1, (0, 2**32 - 1)),
        (np.float32, 1.0001, (0, 1)),
        (np.float64, 1.0, (0, 1)),
        (np.float16, 255, (0, 255)),
        (np.float32, 255, (0, 255)),
        (np.dtype(">u2"), 4095, (0, 4095)),
    ],
)
def test_numbers_in_arrays(dtype: Any, top: float, range_: tuple[float, float], tmp_path: Path) -> None:
    values = (RAMP * top).astype(dtype)
    path = npy(tmp_path / "a.npy", values)
    ranges = ranges_of(path)
    assert list(ranges.ranges.values()) == [range_]
    assert np.array_equal(read(path, ranges)[0], grey(np.clip(values, *range_), *range_))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen(form: str, tmp_path: Path) -> None:
    values = np.rint(RAMP * 4095).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a", form)
    ranges = ranges_of(tmp_path / "a")
    assert ranges.ranges == {"uint16": (0, 4095)}
    assert np.array_equal(read(tmp_path / "a", ranges)[0], grey(values, 0, 4095))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_deep_tiffs(dtype: Any, tmp_path: Path) -> None:
    values = np.rint(RAMP * 252).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif")
    ranges = ranges_of(tmp_path / "a.tif")
    assert np.array_equal(read(tmp_path / "a.tif", ranges)[0], values.astype(np.uint8))


@pytest.mark.parametrize("top", [4095, 65535])
@pytest.mark.parametrize("opaque", [4095, 65535, None])
def test_colours_of_sixteen_bits_in_a_png(top: int, opaque: int | None, tmp_path: Path) -> None:
    values = np.rint(np.stack([RAMP, RAMP[::-1] / 2, RAMP[:, ::-1]], -1) * top).astype(np.uint16)
    stored = values if opaque is None else np.dstack([values, np.full_like(values[..., :1], opaque)])
    path = png16(tmp_path / "a.png", stored)
    ranges = ranges_of(path, channels=3)
    assert ranges.ranges == {"uint16": (0, top)}
    if opaque is None or opaque >= top:
        assert np.array_equal(read(path, ranges, 3), grey(values, 0, top).transpose(2, 0, 1))


def test_grey_with_opacity_in_a_png(tmp_path: Path) -> None:
    values = np.rint(RAMP * 4095).astype(np.uint16)
    opacity = np.where(np.arange(52) < 26, 0, 65535).astype(np.uint16)[None].repeat(40, 0)
    path = png16(tmp_path / "a.png", np.stack([values, opacity], -1))
    found = read(path, ranges_of(path))[0]
    assert (found[:, :26] == 255).all()
    assert np.array_equal(found[:, 26:], grey(values, 0, 4095)[:, 26:])


def test_dark_floats_of_a_bright_set_stay_dark(tmp_path: Path) -> None:
    dark = npy(tmp_path / "a.npy", (RAMP * 0.9).astype(np.float32))
    bright = npy(tmp_path / "b.npy", (RAMP * 250).astype(np.float32))
    ranges = ranges_of(dark, bright)
    assert ranges.ranges == {"float": (0, 255)}
    assert read(dark, ranges).max() == 1
    assert read(bright, ranges).max() == 250


def test_each_kind_has_its_range(tmp_path: Path) -> None:
    Image.fromarray(grey(RAMP, 0, 1)).save(tmp_path / "a.png")
    Image.fromarray(np.rint(RAMP * 1000).astype(np.uint16)).save(tmp_path / "b.png")
    npy(tmp_path / "c.npy", RAMP.astype(np.float32))
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.npy")]
    ranges = ranges_of(*paths)
    assert ranges.ranges == {"float": (0, 1), "uint16": (0, 1023)}
    assert str(ranges) == "float 0 to 1, uint16 0 to 1023"
    assert [int(read(path, ranges).max()) for path in paths] == [255, 249, 255]


def test_ct_numbers_need_a_range(tmp_path: Path) -> None:
    values = np.rint(-1024 + RAMP * 4095).astype(np.int16)
    path = npy(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=r"int16 pixels from -1024 to 3071.*--data\.value-range LO HI"):
        ranges_of(path)
    assert np.array_equal(read(path, ValueRanges.given((-1024, 3071)))[0], grey(values, -1024, 3071))
    with pytest.raises(UnreadableImage, match=r"int16 pixels from -1024 to 3071.*-1000 to 3071.*--value-range LO HI"):
        read(path, ValueRanges.given((-1000, 3071), "--value-range"))


@pytest.mark.parametrize("values", [RAMP * 4000, RAMP - 1, RAMP * 2 - 1, RAMP * 2, RAMP * 300, RAMP * 6 - 3])
def test_floats_without_a_usual_range_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float pixels from"):
        ranges_of(npy(tmp_path / "a.npy", values))


@pytest.mark.parametrize("high", [70_000, 2**29])
def test_wide_numbers_that_use_few_bits_are_refused(high: int) -> None:
    assert likely_range("uint32", 0, high) is None


def test_a_later_image_outside_the_range_is_refused(tmp_path: Path) -> None:
    first = npy(tmp_path / "a.npy", np.rint(RAMP * 4095).astype(np.uint16))
    ranges = ranges_of(first)
    later = npy(tmp_path / "b.npy", np.rint(RAMP * 5000).astype(np.uint16))
    with pytest.raises(UnreadableImage, match=r"uint16 pixels from 0 to 5000, outside the value range 0 to 4095"):
        read(later, ranges)
    other = npy(tmp_path / "c.npy", np.rint(RAMP * 255).astype(np.int32))
    with pytest.raises(UnreadableImage, match=r"int32 pixels from 0 to 255: no value range is known"):
        read(other, ranges)
    assert ranges_of(other, ranges=ranges.ranges).ranges == {"uint16": (0, 4095), "int32": (0, 255)}


def test_floats_may_overshoot_a_little(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", (RAMP * 1.08 - 0.04).astype(np.float32))
    assert read(path, ranges_of(path)).max() == 255
    with pytest.raises(UnreadableImage, match="outside the value range"):
        read(npy(tmp_path / "b.npy", (RAMP * 1.2).astype(np.float32)), ranges_of(path))


def test_not_a_number_is_not_measured(tmp_path: Path) -> None:
    sound = npy(tmp_path / "a.npy", RAMP.astype(np.float32))
    broken = npy(tmp_path / "b.npy", np.full((4, 4), np.nan, np.float32))
    ranges = ranges_of(sound, broken)
    assert ranges.ranges == {"float": (0, 1)}
    with pytest.raises(UnreadableImage):
        read(broken, ranges)


def test_files_that_say_their_depth_keep_it(tmp_path: Path) -> None:
    values = np.rint(RAMP * 1023).astype(np.uint16)
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n52 40\n1023\n" + values.astype(">u2").tobytes())
    ranges = ranges_of(path)
    assert ranges.ranges == {}
    assert np.abs(read(path, ranges)[0].astype(int) - grey(values, 0, 1023)).max() <= 1
    with pytest.raises(UnreadableImage, match=r"leave --data\.value-range away"):
        read(path, ValueRanges.given((0, 1023)))


def test_white_is_zero_with_few_bits(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.rint(RAMP * 4095).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    ranges = ranges_of(tmp_path / "a.tif")
    assert ranges.ranges == {"uint16": (0, 4095)}
    assert np.array_equal(read(tmp_path / "a.tif", ranges)[0], 255 - grey(values, 0, 4095))


def test_plain_images_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Image.fromarray(grey(RAMP, 0, 1))
    for form in ("png", "jpg", "tif", "bmp", "webp", "gif"):
        plain.save(tmp_path / f"a.{form}")
    np.save(tmp_path / "a.npy", grey(RAMP, 0, 1))
    monkeypatch.setattr("mst.data.statistics.read_image", pytest.fail)
    assert ranges_of(*sorted(tmp_path.iterdir())).ranges == {}


def test_statistics_are_of_the_scaled_pixels(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", np.full((8, 8), 2048, np.uint16))
    images = ImageIndex.of([path])
    scale = measured_ranges(images, channels=1, known=ValueRanges())
    assert channel_statistics(images, channels=1, scale=scale)[0] == (pytest.approx(0.502, abs=1e-3),)


def test_stored_ranges_are_checked() -> None:
    ranges = ValueRanges({"uint16": (0, 4095), "float": (0, 1)})
    assert ValueRanges.from_json(ranges.to_json()) == ranges
    for bad in (None, [], {"uint16": 3}, {"uint16": [1, 0]}, {"uint16": [0, float("nan")]}, {"uint16": [True, 2]}):
        with pytest.raises(ValueError, match="value range"):
            ValueRanges.from_json(bad)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("samples", [3, 4, 2])
@pytest.mark.parametrize("top", [4095, 65535])
def test_large_deep_colours_have_the_pixels_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, samples: int, top: int
) -> None:
    values = np.random.default_rng(2).integers(0, top + 1, (31, 22, samples), np.uint16)
    values[:3, :, -1] = 0  # rows that tell nothing of the range of what is transparent
    path = png16(tmp_path / "x.png", values)
    scale = ValueRanges({"uint16": (0.0, float(top))})
    small = decode_image(path, channels=channels, scale=scale)
    monkeypatch.setattr(large_images, "LARGE", 200)
    assert torch.equal(decode_image(path, channels=channels, scale=scale), small)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_values_become_eight_bits_alike_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    values = (np.random.default_rng(3).random((17, 5, 2)) * 3000).astype(dtype)
    whole = value_range.scaled(values, (0, 3000))
    monkeypatch.setattr(value_range, "AT_A_TIME", 20)
    assert np.array_equal(value_range.scaled(values, (0, 3000)), whole)
