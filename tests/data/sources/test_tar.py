"""Tar shards: what is found in them, what is refused, what is remembered."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mst.data.files.kinds import EXTENSIONS
from mst.data.files.tar_index import tar_table
from mst.data.files.tar_listing import Listed, listing
from mst.data.sources import open_images
from mst.data.sources.mixed import MixedImages
from mst.data.sources.places import expanded, has_braces, weighted_place
from mst.data.sources.shard import LocalShard
from mst.data.sources.tar import TarImages
from mst.errors import DataError, UsageError


def png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8 + number, 9), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(images: object) -> list[str]:
    assert isinstance(images, TarImages | MixedImages)
    return [images.name(place).rpartition(".tar:")[2] for place in range(len(images))]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_odd_names(tmp_path: Path, kind: int) -> None:
    names = ["a/" + "x" * 300 + ".png", "ü/é.png", "b c.PNG", "./d.jpeg", "sub/IMG.2020.01.png", "sub/IMG.2020.02.png"]
    pack(tmp_path / "x.tar", {name: png(place) for place, name in enumerate(names)}, kind)
    images = open_images(tmp_path / "x.tar")
    assert members(images) == names
    for place in range(len(names)):
        assert bytes(images.read_bytes(place)) == png(place)
        assert images.size(place) == len(png(place))
        assert bytes(images.read_bytes(place, 16)) == png(place)[:16]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("é.png")
        info.size = len(png())
        tar.addfile(info, io.BytesIO(png()))
    images = open_images(tmp_path / "x.tar")
    assert os.fsencode(images.name(0)).endswith(b"x.tar:\xe9.png")


def test_samples_of_webdataset(tmp_path: Path) -> None:
    parts = {
        **{"0.depth.png": png(1), "0.jpg": png(0), "0.cls": b"3"},
        **{"1.cls": b" 10\n", "1.png": png(2), "1.json": b"{}"},
        **{"2.json": b'{"label": 3, "w": 5}', "2.webp": png(3)},
        **{"3.cls": b"4", "._4.jpg": b"", "__MACOSX/5.jpg": b"", "readme.txt": b""},
    }
    images = open_images(pack(tmp_path / "x.tar", parts))
    assert members(images) == ["0.jpg", "1.png", "2.webp"]
    labels = images.labels()
    assert labels is not None
    assert (labels.classes, labels.numbers.tolist()) == (("3", "10"), [0, 1, 0])
    assert images.passed.count("bare") == 1
    assert {entry.kind for entry in images.passed.entries} == {"bare", "hidden", "other", "system"}
    with pytest.raises(DataError, match=r"1 sample without an image: .*x.tar:3.cls: mend"):
        open_images(tmp_path / "x.tar", strict=True)


def test_labels_that_are_none(tmp_path: Path) -> None:
    one = {"0.jpg": png(), "0.cls": b"3", "1.jpg": png()}
    with pytest.raises(DataError, match=r"1 of 2 images have no label, such as .*x.tar:1.jpg"):
        open_images(pack(tmp_path / "x.tar", one)).labels()
    assert open_images(pack(tmp_path / "y.tar", {"0.jpg": png()})).labels() is None
    for name, content, said in (
        ("json", b"{", "holds no class with a key label, cls or class"),
        ("json", b'{"a": 1}', "holds no class"),
        ("json", b"[1]", "holds no class"),
        ("cls", b"\xff", "holds no class"),
        ("cls", b" ", "is empty"),
    ):
        with pytest.raises(DataError, match=f"the member {name} of .*z.tar:0.jpg {said}"):
            open_images(pack(tmp_path / "z.tar", {"0.jpg": png(), f"0.{name}": content})).labels()


def test_by_content(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {"a": png(), "b.dat": png(1), "c.txt": b"text"})
    assert members(open_images(tmp_path / "x.tar", by_content=True)) == ["a", "b.dat"]
    with pytest.raises(DataError, match=r"x.tar holds no images; found: 3 files without a known extension"):
        open_images(tmp_path / "x.tar")


def test_patterns_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        pack(folder / f"s-{number:03}.tar", {f"{number}.png": png(number)})
    everything = [f"{number}.png" for number in range(12)]
    for pattern in ("s-{000..011}.tar", "s-*.tar", "s-0{00..09}.tar", "s-{000,001,002}.tar"):
        found = members(open_images(folder / pattern))
        assert found == everything[: len(found)]
        assert len(found) in {3, 10, 12}
    assert members(open_images(folder)) == everything
    assert members(open_images([folder / "s-003.tar", folder / "s-001.tar"])) == ["3.png", "1.png"]
    assert members(open_images(folder, limit=3)) == ["0.png", "4.png", "8.png"]
    with pytest.raises(UsageError, match=r"2 of 14 files do not exist, the first: .*s-012.tar"):
        open_images(folder / "s-{000..013}.tar")
    with pytest.raises(UsageError, match="no file has a name like"):
        open_images(folder / "t-*.tar")
    with pytest.raises(UsageError, match=r"none.tar does not exist: give a file of images, or a pattern"):
        open_images(folder / "none.tar")
    (folder / "a.png").write_bytes(png())
    assert len(open_images(folder)) == 1  # a folder of images is that


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{0..2}", ["a0", "a1", "a2"]),
        ("a{08..11}b", ["a08b", "a09b", "a10b", "a11b"]),
        ("{b,a}{1..2}", ["b1", "b2", "a1", "a2"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{x}", ["{x}"]),
    ],
)
def test_braces_as_bash_expands_them(pattern: str, names: list[str]) -> None:
    assert expanded(pattern) == names
    assert has_braces(pattern) == (pattern != "{x}")


def test_too_many(tmp_path: Path) -> None:
    for pattern in ("{0..9999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(UsageError, match="at most 1000000"):
            open_images(tmp_path / pattern)


def test_links_and_sparse_files_are_refused_by_name(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo("a.jpg")
            info.type, info.linkname = kind, "b"
            tar.addfile(info)
        with pytest.raises(DataError, match=r"x.tar: the member a.jpg is (a link|no file): pack the files themselves"):
            open_images(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:700], "cannot be read as a tar file: unexpected end of data"),
        (lambda data: data[:2048], "is truncated: it ends after 2048 bytes"),
        (lambda data: data + data, "holds more after its end mark"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "is damaged: at byte 1024"),
        (lambda data: b"", "cannot be read as a tar file: empty file"),
        (lambda data: b"no tar file" * 99, "cannot be read as a tar file"),
        (gzip.compress, r"is a compressed tar file \(gzip\).*unpack it \(gzip -dk\)"),
    ],
)
def test_damaged_shards(tmp_path: Path, spoil: object, said: str) -> None:
    data = pack(tmp_path / "x.tar", {"a.png": b"1" * 300, "b.png": b"2" * 300}).read_bytes()
    (tmp_path / "x.tar").write_bytes(spoil(data))  # type: ignore[operator]
    with pytest.raises(DataError, match=f"x.tar {said}") as refused:
        open_images(tmp_path / "x.tar")
    assert "\n" not in str(refused.value)


def test_compressed_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"1")
    with pytest.raises(UsageError, match="compressed tar file"):
        open_images(tmp_path / "x.tar.gz")


def test_a_shard_that_is_cut_short_later(tmp_path: Path) -> None:
    images = open_images(pack(tmp_path / "x.tar", {"a.png": png()}))
    os.truncate(tmp_path / "x.tar", 520)
    with pytest.raises(OSError, match=r"the file ends .* bytes before the end of this image"):
        images.read_bytes(0)


def described(path: Path) -> Path:
    """Write the list of members beside a tar file, each a sample of its own."""
    with tarfile.open(path) as tar:
        samples = [[Listed(info.name, info.offset_data, info.size)] for info in tar]
    path.with_suffix(".idx").write_text(listing(samples))
    return path


def test_a_list_beside_is_read_in_place_of_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        f"{number:03}.{kind}": png(number) if kind == "png" else b"1" for number in range(20) for kind in ("png", "cls")
    }
    path = pack(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    expected = open_images(path)
    described(path)
    with monkeypatch.context() as patch:
        patch.setattr("mst.data.files.tar_index._opened", None)
        found = open_images(path)
    assert isinstance(found, TarImages)
    assert isinstance(expected, TarImages)
    for one, other in zip(found.table, expected.table, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other  # type: ignore[arg-type]
    assert found.fingerprint() == expected.fingerprint()


def test_a_list_of_another_file_is_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = described(
        pack(tmp_path / "x.tar", {f"{number}.png": png(number) for number in range(9)}, tarfile.USTAR_FORMAT)
    )
    text = path.with_suffix(".idx").read_text()
    pack(path, {f"{number}.png": png(number + 60) for number in range(9)}, tarfile.USTAR_FORMAT)  # of other sizes
    renamed = {f"{number + 100}.png": png(number) for number in range(9)}
    for damage in (text, text[:-30], "v1.1 0\n", "", "v1.2 1\npng 512 x 0.png\n", text.replace("4.png", "4.gif")):
        path.with_suffix(".idx").write_text(damage)
        assert [bytes(open_images(path).read_bytes(place)) for place in range(9)] == [png(n + 60) for n in range(9)]
        assert "does not describe the tar file beside it: its headers are read" in capsys.readouterr().err
    pack(path, renamed, tarfile.USTAR_FORMAT)
    path.with_suffix(".idx").write_text(text)
    assert members(open_images(path)) == [*renamed]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("comment", [None, {"comment": "x"}])
def test_plain_headers_are_read_as_tarfile_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, comment: dict[str, str] | None
) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=kind, pax_headers=comment) as tar:
        for number, name in enumerate(
            ("a.png", "a.cls", "ü.png", "d" * 90 + "/" + "n" * 60 + ".png", "d/.x.png", "e.txt")
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(png(number)), 1.5 if number % 2 else 7
            tar.addfile(info, io.BytesIO(png(number)))
        folder = tarfile.TarInfo("d/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    shard = LocalShard(str(path))
    found = tar_table(shard, shard.stamp(), EXTENSIONS, None)
    with monkeypatch.context() as patch:
        patch.setattr("mst.data.files.tar_index.plain_header", lambda *_: None)
        expected = tar_table(shard, shard.stamp(), EXTENSIONS, None)
    assert len(found.starts) == 3
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other  # type: ignore[arg-type]


def test_tables_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "x.tar", {f"{number}.png": b"%d" % number for number in range(300)})
    past = time.time() - 100
    os.utime(path, (past, past))

    def table() -> list[object]:
        shard = LocalShard(str(path))
        return list(tar_table(shard, shard.stamp(), EXTENSIONS, tmp_path / "cache"))

    first = table()
    with monkeypatch.context() as patch:
        patch.setattr("mst.data.files.tar_index._scan", None)
        for one, other in zip(first, table(), strict=True):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other  # type: ignore[arg-type]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert len(table()[0]) == 300  # type: ignore[arg-type]
    os.utime(path, (past, past - 1))
    pack(path, {"a.png": b"1"})
    assert len(table()[0]) == 1  # type: ignore[arg-type]


def test_weights(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", {"a.png": png()})
    for weight in ("0", "-1", "nan", "inf", "1001", "0.0"):
        with pytest.raises(UsageError, match=rf"a weight of {weight}: it must be more than 0 and at most 1000"):
            open_images(f"{path}@{weight}", weighted=True)
    assert weighted_place(f"{path}@2.5") == (str(path), 2.5, True)
    assert open_images([f"{path}@2", path], weighted=True).weights() == [(1, 2.0), (1, 1.0)]
    with pytest.raises(UsageError, match="weights are of pre-training"):
        open_images(f"{path}@2")
    named = pack(tmp_path / "y@2", {})
    assert weighted_place(str(named)).weighted is False
    assert weighted_place("me@home").weighted is False
