from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst.data.sources import ImageIndex, even_positions, index_images
from mst.errors import DataError, UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(index: ImageIndex, root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in index]


def test_any_depth_any_case_sorted(tmp_path: Path) -> None:
    wanted = ["b.JPG", "z.jpeg", "a/1/2/3/x.Png", "a/y.webp", "c/1.tif", "c/2.TIFF", "c/3.bmp"]
    touch(tmp_path, *wanted, "notes.txt", "a/x.npy", "jpg", "c/x.jpg.bak", ".hidden.jpg", ".cache/x.jpg", "c/._1.tif")
    index = index_images(tmp_path)
    assert names(index, tmp_path) == ["b.JPG", "z.jpeg", "a/y.webp", "a/1/2/3/x.Png", "c/1.tif", "c/2.TIFF", "c/3.bmp"]
    assert len(index) == 7
    assert index[6] == tmp_path / "c/3.bmp"
    with pytest.raises(IndexError):
        index[7]


def test_several_sources_in_their_order_each_folder_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/b/2.jpg", "c/3.jpg")
    index = index_images([tmp_path / "c", tmp_path / "a/b", tmp_path / "a", str(tmp_path / "c/3.jpg")])
    assert names(index, tmp_path) == ["c/3.jpg", "a/b/2.jpg", "a/1.jpg", "c/3.jpg"]
    assert names(index_images([tmp_path / "a", tmp_path / "a/b"]), tmp_path) == ["a/1.jpg", "a/b/2.jpg"]


def test_lists(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "out/3.img")
    listing = tmp_path / "lists/train.txt"
    listing.parent.mkdir()
    listing.write_text(f"﻿../a/2.jpg\r\n# a remark\n\n  {tmp_path}/a/1.jpg  \n../a/2.jpg\n../out/3.img\n../gone.jpg")
    assert names(index_images(listing), tmp_path) == ["a/2.jpg", "a/1.jpg", "a/2.jpg", "out/3.img", "gone.jpg"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(index_images("a")) == [tmp_path / "a/1.jpg"]
    assert list(index_images(["./a/../a/1.jpg"])) == [tmp_path / "a/1.jpg"]


def test_links(tmp_path: Path) -> None:
    touch(tmp_path, "data/real/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "data/real/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/one.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    (tmp_path / "data/dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "data/pipe.jpg")
    expected = ["dead.jpg", "one.jpg", "other/2.jpg", "real/1.jpg"]
    assert names(index_images(tmp_path / "data"), tmp_path / "data") == expected


def test_odd_names(tmp_path: Path) -> None:
    odd = [b"\xff\xfe.jpg", "ü é.jpg".encode(), b"new\nline.png"]
    for name in odd:
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "folder.jpg").mkdir()
    touch(tmp_path, "folder.jpg/in.jpg")
    index = index_images(tmp_path)
    assert sorted(os.fsencode(path.name) for path in index) == sorted([*odd, b"in.jpg"])
    assert all(path.exists() for path in index)
    assert list(pickle.loads(pickle.dumps(index))) == list(index)


def test_limit_draws_evenly(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.jpg" for c in "abcde" for i in range(8)))
    assert names(index_images(tmp_path, limit=5), tmp_path) == [f"{c}/0.jpg" for c in "abcde"]
    assert len(index_images(tmp_path, limit=40)) == len(index_images(tmp_path, limit=400)) == 40


@given(size=st.integers(0, 10**7), limit=st.integers(0, 2000))
def test_even_positions(size: int, limit: int) -> None:
    positions = even_positions(size, limit).tolist()
    assert len(positions) == len(set(positions)) == min(size, limit)
    assert positions == sorted(positions)
    gaps = {b - a for a, b in zip(positions, [*positions[1:], size], strict=True)} if positions else {1}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing", UsageError, "missing does not exist"),
        ("none", DataError, "none holds no images: looked at any depth for bmp, jpeg, jpg"),
        ("empty.txt", DataError, "lists no paths"),
        ("wrong.txt", DataError, r"wrong.txt: its first path is no file: .*/gone.jpg \(paths are relative"),
        ("archive.zip", UsageError, "neither a folder, nor an image"),
    ],
)
def test_bad_sources_get_one_clear_line(tmp_path: Path, path: str, error: type[Exception], message: str) -> None:
    touch(tmp_path, "none/readme.md", "none/deep/er/x.txt", "good/1.jpg")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "wrong.txt").write_text("gone.jpg\n")
    (tmp_path / "archive.zip").write_bytes(b"PK\3\4\0\0\0\0")
    with pytest.raises(error, match=message) as caught:
        index_images([tmp_path / "good", tmp_path / path])
    assert "\n" not in str(caught.value)


def test_nothing_given() -> None:
    for nothing in ([], "", ["x", ""]):
        with pytest.raises(UsageError, match="no images given"):
            index_images(nothing)
