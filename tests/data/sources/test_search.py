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


def kinds(index: ImageIndex) -> dict[tuple[str, str], int]:
    return {(entry.kind, entry.reason): entry.count for entry in index.passed.entries}


def test_a_bad_entry_costs_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = touch(tmp_path / "set", "a.png", "deep/b.png")
    (top / "loop").symlink_to("loop")
    (top / "one.jpg").symlink_to("two.jpg")
    (top / "two.jpg").symlink_to("one.jpg")
    (top / "through.jpg").symlink_to("a.png/x")
    (top / "long.jpg").symlink_to("y" * 300)
    (top / "class").symlink_to("nowhere")
    os.mkfifo(top / "pipe.jpg")
    (top / "piped.jpg").symlink_to("pipe.jpg")
    index = index_images(top)
    assert names(index, top) == ["a.png", "deep/b.png"]
    assert kinds(index) == {
        ("link", "Too many levels of symbolic links"): 3,
        ("link", "Not a directory"): 1,
        ("link", "File name too long"): 1,
        ("link", "No such file or directory"): 1,
        ("special", "a pipe"): 2,
    }
    told = capsys.readouterr().err
    assert told.count("warning:") == 1
    assert "3 links that lead nowhere" in told
    assert str(top / "class") in told
    with pytest.raises(DataError, match="class"):
        index_images(top, strict=True)
    assert index.evenly(1).passed is index.passed


def test_a_link_back_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the class `cat` would have the images of `dog`."""
    top = touch(tmp_path / "set", "cat/a.png", "dog/b.png")
    (top / "cat" / "up").symlink_to("..")
    (top / "cat" / "here").symlink_to(top / "cat")
    (top / "cat" / "beside").symlink_to("../dog")
    index = index_images(top / "cat")
    assert names(index, top) == ["cat/a.png", "cat/beside/b.png"]
    assert kinds(index) == {("circle", ""): 2}
    assert "2 links to folders that they lie in" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = touch(tmp_path / "set", "a.png", "theirs/b.png", "z/c.png")
    search = os.scandir

    def guarded(path: bytes) -> object:
        if path.endswith(b"theirs"):
            raise PermissionError(13, "Permission denied")
        return search(path)

    monkeypatch.setattr(os, "scandir", guarded)
    index = index_images(top)
    assert names(index, top) == ["a.png", "z/c.png"]
    assert kinds(index) == {("folder", "Permission denied"): 1}
    with pytest.raises(UsageError, match=r"theirs cannot be searched: Permission denied"):
        index_images(top / "theirs")


def test_paths_longer_than_the_system_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/a.png")
    monkeypatch.chdir(tmp_path / "set")
    for _ in range(20):
        Path("d" * 250).mkdir()
        Path("i.jpg").touch()
        os.chdir("d" * 250)
    index = index_images(tmp_path / "set", tell=False)
    assert len(index) > 10
    assert all(path.exists() for path in index)
    assert ("folder", "File name too long") in kinds(index) or any(kind == "path" for kind, _ in kinds(index))


def test_every_name_of_an_image_and_none_of_systems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds_of_images = ("JFIF", "avif", "bmp", "gif", "jp2", "jpe", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "webp")
    wanted = [f"x.{kind}" for kind in kinds_of_images]
    touch(tmp_path, *wanted, "@eaDir/t.jpg", "$Recycle.Bin/r.jpg", "__MACOSX/m.jpg", "lost+found/l.jpg", "Thumbs.db")
    touch(tmp_path, "System Volume Information/s.jpg", "p.HEIC", "noext", "caption.txt", ".h.jpg")
    index = index_images(tmp_path)
    assert names(index, tmp_path) == sorted(wanted)
    found = kinds(index)
    assert found["system", ""] == 6
    assert (found["other", "heic"], found["other", ""], found["other", "txt"], found["hidden", ""]) == (1, 1, 1, 1)
    told = " ".join(capsys.readouterr().err.split())
    assert "2 files without a known extension (1 without one, 1 .heic), e.g." in told
    assert "txt" not in told
    assert "warning" not in told


def test_by_content(tmp_path: Path) -> None:
    heads = {
        "jpeg": b"\xff\xd8\xff\xe0",
        "png.part": b"\x89PNG\r\n\x1a\n",
        "webp": b"RIFF\0\0\0\0WEBPVP8 ",
        "avif": b"\0\0\0\x1cftypavif",
        "tif": b"II*\0",
        "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
        "pgm": b"P5\n3 3\n255\n",
        "npy": b"\x93NUMPY\1\0",
    }
    for name, head in heads.items():
        (tmp_path / f"{name}.dat").write_bytes(head)
    (tmp_path / "BMW.md").write_bytes(b"BMW is no image, nor is this")
    (tmp_path / "P2P").write_bytes(b"P2P")
    touch(tmp_path, "nothing", "x.jpg")
    os.mkfifo(tmp_path / "pipe")
    assert names(index_images(tmp_path, by_content=True), tmp_path) == sorted(
        [*(f"{name}.dat" for name in heads), "x.jpg"]
    )
    assert names(index_images(tmp_path), tmp_path) == ["x.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_lists(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "a/1.jpg", "ü/é.jpg", "b c.jpg")
    (tmp_path / "list.txt").write_bytes("a/1.jpg\r\nü/é.jpg\r\n\r\nb c.jpg".encode(encoding))
    assert names(index_images(tmp_path / "list.txt"), tmp_path) == ["a/1.jpg", "ü/é.jpg", "b c.jpg"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"#a.png", b"#a.png"),
        (b"end .png ", b"end .png "),
        (b"\t a/1.jpg ", b"a/1.jpg"),
        (b'"a/1.jpg"', b"a/1.jpg"),
        (b"'a/1.jpg'", b"a/1.jpg"),
        (b"a\\1.jpg", b"a/1.jpg"),
        (b'".\\a\\1.jpg"', b"a/1.jpg"),
        (b"~/a/1.jpg", b"a/1.jpg"),
        (b"\xff.jpg", b"\xff.jpg"),
        (b"-rf.png", b"-rf.png"),
        (b"b[red].png", b"b[red].png"),
        (b"b\\s.png", b"b\\s.png"),
        (b"./a/../a/1.jpg", b"a/1.jpg"),
        (b"c:d.png", b"c:d.png"),
    ],
)
def test_lines_of_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, expected: bytes) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / os.fsdecode(expected)).touch()
    (tmp_path / "list.txt").write_bytes(line + b"\n# remark\n")
    assert [os.fsencode(path.relative_to(tmp_path)) for path in index_images(tmp_path / "list.txt")] == [expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("C:\\photos\\1.jpg", r"lists a path of Windows: C:\\photos\\1.jpg"),
        ('"d:/photos/1.jpg"', "lists a path of Windows"),
        ("\\\\server\\share\\1.jpg", "lists a path of Windows"),
        ("https://example.org/1.jpg", "lists an address: https"),
        ("s3://bucket/1.jpg", "lists an address"),
    ],
)
def test_lines_that_name_other_places(tmp_path: Path, line: str, message: str) -> None:
    touch(tmp_path, "good.jpg")
    (tmp_path / "list.txt").write_text(f"good.jpg\n{line}\n")
    with pytest.raises(UsageError, match=message):
        index_images(tmp_path / "list.txt")


def test_lists_name_folders_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "3.jpg", "b.jpg/4.jpg", "5")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "list.txt").write_text("gone.jpg\na\n3.jpg\nb.jpg\npipe.jpg\n5\n")
    index = index_images(tmp_path / "list.txt")
    assert names(index, tmp_path) == ["gone.jpg", "a/1.jpg", "a/2.jpg", "3.jpg", "b.jpg/4.jpg", "5"]
    assert "1 listed file that does not exist (of 6 in" in capsys.readouterr().err
    with pytest.raises(DataError, match="listed file that does not exist"):
        index_images(tmp_path / "list.txt", strict=True)


def test_sources_of_every_type(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    for source in (tmp_path, str(tmp_path), os.fsencode(tmp_path), [tmp_path], (os.fsencode(tmp_path / "a"),)):
        assert names(index_images(source), tmp_path) == ["a/1.jpg"]


def test_a_bad_source_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link").symlink_to("pipe.jpg")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("nowhere")
    for name, message in (
        ("pipe.jpg", "is a pipe"),
        ("link", "is a pipe"),
        ("loop", "Too many levels"),
        ("dead", "a link that leads nowhere"),
        ("file/x", "cannot be read: Not a directory"),
        ("y" * 300, "File name too long"),
        ("nul\0", "null byte|NUL"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            index_images(f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)


def test_what_there_is_instead_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.npy", "b.npy", "c.heic")
    with pytest.raises(DataError, match=r"2 \.npy, 1 \.heic.*arrays are searched for with --data.channels"):
        index_images(tmp_path, channels=1)


@pytest.mark.parametrize("source", [5, [5], None, "~no-such-user/x", "\ud800"])
def test_what_is_no_path(source: object) -> None:
    with pytest.raises(UsageError, match=r"is no path|there is no user"):
        index_images(source)  # type: ignore[arg-type]
