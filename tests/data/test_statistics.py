"""Channel statistics against the plain definition, on the images and the sample that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mst.data.sources import index_images
from mst.data.statistics import SMALLEST_STD, channel_statistics
from mst.errors import DataError


def arrays(folder: Path, count: int = 5, channels: int = 6) -> list[np.ndarray]:
    """Write arrays of different sizes; the last channel is constant."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(3)
    made = []
    for number in range(count):
        values = draws.integers(0, 256, (8 + number, 12, channels), dtype=np.uint8)
        values[..., -1] = 51
        np.save(folder / f"a_{number}.npy", values)
        made.append(values / 255)
    return made


def test_equals_the_definition_with_every_image_alike(tmp_path: Path) -> None:
    made = arrays(tmp_path / "set")
    (tmp_path / "set" / "broken.npy").write_bytes(b"\x93NUMPY junk")
    mean, std = channel_statistics(index_images(tmp_path, channels=6), channels=6)
    expected = np.mean([values.mean(axis=(0, 1)) for values in made], axis=0)
    square = np.mean([(values**2).mean(axis=(0, 1)) for values in made], axis=0)
    assert mean == pytest.approx(expected, abs=1e-4)
    assert std[:-1] == pytest.approx(np.sqrt(square - expected**2)[:-1], abs=1e-4)
    assert (mean[-1], std[-1]) == (0.2, round(SMALLEST_STD, 4))


def test_the_sample_is_bounded(tmp_path: Path) -> None:
    made = arrays(tmp_path / "set", count=4)
    mean, _ = channel_statistics(index_images(tmp_path, channels=6), channels=6, sample=1)
    assert mean == pytest.approx(made[0].mean(axis=(0, 1)), abs=1e-4)


def test_nothing_to_measure(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(DataError, match="none of 1 images can be decoded"):
        channel_statistics(index_images(tmp_path, channels=6), channels=6)
