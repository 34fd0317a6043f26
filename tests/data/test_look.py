"""What a data set looks like: against pictures whose properties are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mst.config.facts import SetFacts
from mst.data.look import alike_share, detail_side, difference_hash, look_at
from mst.data.sources import open_images
from mst.errors import DataError


def noise(side: int, seed: int, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return pixels if channels == 3 else pixels.repeat(3, axis=2)


def save(folder: Path, pictures: list[np.ndarray]) -> SetFacts:
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return look_at(open_images([folder], tell=False), channels=3)


def test_grey_stored_as_rgb_is_grey(tmp_path: Path) -> None:
    found = save(tmp_path, [noise(40, seed, channels=1) for seed in range(6)])
    assert (found.grey, found.count, found.size, found.alike) == (True, 6, (40, 40), 0.0)


def test_one_picture_in_colour_makes_the_set_coloured(tmp_path: Path) -> None:
    assert not save(tmp_path, [*(noise(40, seed, channels=1) for seed in range(5)), noise(40, 9)]).grey


def test_frames_of_a_film_are_alike(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(noise(8, 1)).resize((64, 64), Image.Resampling.BICUBIC))
    frames = [np.clip(smooth.astype(int) + shift, 0, 255).astype(np.uint8) for shift in range(5)]
    assert save(tmp_path, [*frames, noise(64, 2)]).alike == pytest.approx(5 / 6, abs=1e-3)


def test_unreadable_images_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert save(tmp_path, [noise(20, 1)]).size == (20, 20)


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 1 images looked at can be decoded"):
        look_at(open_images([tmp_path], tell=False), channels=3)


@pytest.mark.parametrize("periods", [2, 5, 12, 30])
def test_detail_of_a_wave_is_twice_its_periods(periods: int) -> None:
    along = torch.arange(128) / 128 * 2 * torch.pi * periods
    assert detail_side(0.5 + 0.4 * along.sin().expand(128, 128)) == pytest.approx(2 * periods, abs=3)


def test_detail_grows_with_resolution_and_not_with_enlarging() -> None:
    plane = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(plane[None, None], (256, 256), mode="bicubic")[0, 0]
    assert detail_side(plane) == pytest.approx(detail_side(enlarged), rel=0.35)
    assert detail_side(torch.rand(256, 256, generator=torch.Generator().manual_seed(0))) > 150


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 50), (5, 5)])
def test_tiny_and_flat_pictures_have_no_detail_to_lose(shape: tuple[int, int]) -> None:
    assert detail_side(torch.full(shape, 0.3)) == min(shape)
    assert 1 <= detail_side(torch.rand(shape, generator=torch.Generator().manual_seed(0))) <= min(shape)
    assert difference_hash(torch.rand(shape)).shape == (256,)


def test_a_single_image_is_like_no_other() -> None:
    assert alike_share([np.zeros(256, dtype=bool)]) == 0.0
    assert alike_share([np.zeros(256, dtype=bool)] * 2) == 1.0
