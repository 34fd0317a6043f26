from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.data import statistics
from mst.data.formats import large as large_images
from mst.data.inspection import facts
from mst.data.survey import inspect_images
from mst.errors import DataError, UsageError


def picture(path: Path, values: object, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **options)  # type: ignore[arg-type]


def test_what_is_there(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a/x.jpg", np.full((8, 16, 3), 51, np.uint8), exif=exif)
    picture(tmp_path / "b/x.jpg", np.full((8, 16, 3), 51, np.uint8))
    picture(tmp_path / "grey16.png", np.array([[0, 4095]] * 8, np.uint16))
    (tmp_path / os.fsdecode(b"\xff[red].png")).write_bytes(b"")
    (tmp_path / "p.heic").touch()
    os.mkfifo(tmp_path / "pipe.gif")
    found = inspect_images(tmp_path)
    assert (found["images"], found["readable"]) == (4, 3)
    assert found["sizes"] == {"16x8": 1, "8x16": 1, "8x2": 1}
    assert found["depths"] == {"8 bits": 2, "16 bits": 1}
    assert found["values"] == {"16 bits": [0, 4095]}
    assert (found["turned"], found["same_names"]) == (1, 2)
    assert found["unreadable"] == [{"path": f"{tmp_path}/\\xff[red].png", "reason": "empty file"}]
    assert {(row["kind"], row["reason"], row["count"]) for row in found["passed_over"]} == {
        ("other", "heic", 1),
        ("special", "a pipe", 1),
    }


def test_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "six.npy", np.full((4, 5, 6), 255, np.uint8))
    found = inspect_images(tmp_path, channels=6)
    assert (found["sizes"], found["formats"], found["mean"]) == ({"4x5": 1}, {"NPY": 1}, [1.0] * 6)
    with pytest.raises(DataError, match=r"1 \.npy.*arrays are searched for"):
        inspect_images(tmp_path, channels=1)
    (tmp_path / "list.txt").write_text("six.npy")
    assert (
        "1 channels first or last are asked for"
        in inspect_images(tmp_path / "list.txt", channels=1)["unreadable"][0]["reason"]
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, channels: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)
    Image.fromarray(noise).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode).save(tmp_path / "x.tif")
    small = inspect_images(tmp_path, channels=channels)
    monkeypatch.setattr(facts, "LARGE", 100)
    for module in (facts, statistics):
        monkeypatch.setattr(module, "STRIP", 500)
    monkeypatch.setattr(facts, "HEAVY", 10)
    large = inspect_images(tmp_path, channels=channels)
    assert large == small
    assert small["readable"] == 1


def test_nothing_that_happens_is_a_traceback(tmp_path: Path) -> None:
    picture(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text("x.png\ngone.png\n")
    found = inspect_images(tmp_path / "list.txt")
    assert (found["images"], found["readable"]) == (2, 1)
    assert found["unreadable"][0]["reason"] == "No such file or directory"
    assert found["passed_over"][0]["kind"] == "missing"
    with pytest.raises(UsageError, match="is a pipe"):
        inspect_images(tmp_path / "pipe.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_a_large_png_takes_half_a_gigabyte(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9500, 9500)).save(tmp_path / "x.png", compress_level=1)
    code = (
        "import resource, sys; from mst.data.survey import inspect_images;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "assert inspect_images(sys.argv[1])['readable'] == 1;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    answer = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 500 << 10


def test_the_value_range_is_said_and_used(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", np.array([[0, 4095]] * 8, np.uint16))
    found = inspect_images(tmp_path, channels=1)
    assert (found["value_ranges"], found["mean"]) == ({"uint16": [0, 4095]}, [0.5])
    given = inspect_images(tmp_path, channels=1, value_range=(0, 8190))
    assert given["value_ranges"] == {"given": [0, 8190]}
    assert given["mean"] == [pytest.approx(0.25, abs=2e-3)]


def test_values_without_a_usual_range(tmp_path: Path) -> None:
    picture(tmp_path / "a.tif", np.array([[-1024, 3071]] * 8, np.int32))
    found = inspect_images(tmp_path)
    assert found["value_ranges"] == {}
    assert "int32 pixels from -1024 to 3071" in found["value_range_problem"]
    assert "--value-range LO HI" in found["unreadable"][0]["reason"]
    assert inspect_images(tmp_path, value_range=(-1024, 3071))["mean"] == [0.5] * 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turn", [1, 6])
def test_large_pngs_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, channels: int, turn: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)
    picture = Image.fromarray(noise).convert("RGBA")
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / "x.png", **({"exif": exif} if turn > 1 else {}))
    small = inspect_images(tmp_path, channels=channels)
    for module in (facts, large_images):
        monkeypatch.setattr(module, "LARGE", 100)
    large = inspect_images(tmp_path, channels=channels)
    assert large == small
    assert small["turned"] == (turn > 1)
