"""Images in .npy files: which layouts and number types are understood, which are refused, and when files are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.pictures import decode_or_refuse, write_textures
from mst.data.decoding import UnreadableImage, decode_image
from mst.data.labelled import LabelledFolder
from mst.data.sources import index_images
from mst.data.sources.arrays import array_images
from mst.errors import DataError

PIXELS = np.random.default_rng(1).integers(0, 256, (5, 7, 6), dtype=np.uint8)  # [H, W, C]


@pytest.mark.parametrize(
    ("values", "channels"),
    [
        (PIXELS, 6),
        (PIXELS.transpose(2, 0, 1), 6),
        (np.asfortranarray(PIXELS), 6),
        (PIXELS.astype(">u2") * 257, 6),
        (PIXELS / 255, 6),
        (PIXELS.astype(np.float32), 6),
        (PIXELS[..., :3], 3),
        (PIXELS[..., :1], 1),
        (PIXELS[..., 0], 1),
        (np.repeat(PIXELS, 11, axis=2)[..., :64], 64),
    ],
)
def test_layouts_and_types(values: np.ndarray, channels: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values)
    expected = (np.repeat(PIXELS, 11, axis=2) if channels == 64 else PIXELS)[..., :channels]
    image = decode_image(tmp_path / "a.npy", channels=channels)
    assert image.dtype == torch.uint8
    assert image.permute(1, 2, 0).is_contiguous()
    assert torch.equal(image, torch.from_numpy(expected.transpose(2, 0, 1).copy()))


def test_channels_last_wins_where_both_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS[:, :, :5])
    assert decode_image(tmp_path / "a.npy", channels=5).shape == (5, 5, 7)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (PIXELS[..., :4], "6 channels first or last are asked for"),
        (PIXELS[..., 0], "6 channels first or last are asked for"),
        (PIXELS[None], "6 channels first or last are asked for"),
        (np.array([{"a": 1}], dtype=object), "only whole numbers and floats"),
        (PIXELS.astype(complex), "only whole numbers and floats"),
        (PIXELS[:0], "empty or truncated"),
        (PIXELS.astype(np.int32) - 9, "int32 pixels from -9 to 246: what is white among them is not known"),
        (PIXELS.astype(np.int64), "store them as uint8 or uint16"),
        (PIXELS.astype(np.uint32), "store them as uint8 or uint16"),
        ((PIXELS // 2).astype(np.int8), "store them as uint8 or uint16"),
        (PIXELS * np.float32("nan"), "only [0, 1] or [0, 255]"),
    ],
)
def test_refused(values: Any, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(tmp_path / "a.npy", channels=6)
    assert said in caught.value.reason


def test_damaged_files_give_one_exception(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    whole = (tmp_path / "a.npy").read_bytes()
    draws = np.random.default_rng(2)
    for number in range(150):
        damaged = bytearray(whole[: draws.integers(1, len(whole))] if number % 2 else whole)
        for _ in range(3):
            damaged[draws.integers(min(len(damaged), 128))] ^= 1 << int(draws.integers(8))
        (tmp_path / "b.npy").write_bytes(damaged)
        decode_or_refuse(tmp_path / "b.npy", channels=6)


def test_a_damaged_header_is_called_so(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    whole = (tmp_path / "a.npy").read_bytes()
    for damage in (b"Faxse", b"f()  ", b"(((((", b"\xff\xff\xff\xff\xff"):
        (tmp_path / "b.npy").write_bytes(whole.replace(b"False", damage))
        with pytest.raises(UnreadableImage) as caught:
            decode_image(tmp_path / "b.npy", channels=6)
        assert caught.value.reason == "a .npy file with a damaged header"


def test_arrays_are_found_where_images_have_other_channels(tmp_path: Path) -> None:
    write_textures(tmp_path / "set", 2)
    np.save(tmp_path / "set" / "mask.npy", PIXELS)
    assert len(index_images(tmp_path / "set")) == 2
    assert len(index_images(tmp_path / "set", channels=6)) == 3
    assert len(index_images(tmp_path / "set" / "mask.npy")) == 1
    (tmp_path / "list.txt").write_text("set/mask.npy\n")
    assert index_images(tmp_path / "list.txt")[0].name == "mask.npy"
    for name in ("train/a", "val/a"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        np.save(tmp_path / "labelled" / name / "x.npy", PIXELS)
    assert len(LabelledFolder(tmp_path / "labelled", channels=6).train.paths) == 1


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_one_colour_image_is_not_many_grey_ones(columns: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 30, columns), np.uint8))
    with pytest.raises(DataError, match=r"its shape is \[20, 30, "):
        array_images(tmp_path / "a.npy", 1)
    np.save(tmp_path / "b.npy", np.zeros((20, 30, 9), np.uint8))
    assert len(array_images(tmp_path / "b.npy", 1)) == 20
